from __future__ import annotations

import cv2
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmseg.registry import DATASETS, MODELS
from segmentation.scene import LOAD, PACK, dataset_cfg, model_cfg

from mmfusion_plugin.segmentation.visualize import (
    RIGHT,
    WRONG,
    Panel,
    draw_grid,
    draw_sample,
    error_panel,
    label_panel,
    sensor_panels,
)


def test_panels_show_the_sensors_own_units():
    preprocessor = MODELS.build(model_cfg()["data_preprocessor"])
    rgb = torch.randint(1, 255, (3, 4, 5)).float()
    depth = torch.linspace(1, 3, 20).view(1, 4, 5)
    stacked = torch.cat([(rgb - 120) / 60, depth - 2.0])
    stacked[:, 3] = 0  # padding
    colour, metres = sensor_panels(preprocessor, stacked)
    assert np.abs(colour.image[:3].astype(int) - rgb.numpy().transpose(1, 2, 0)[:3]).max() <= 1
    assert metres.caption == "depth 1.01 m (dark) to 2.46 m (bright), 25% unknown"
    near, far = metres.image[0, 0].astype(int), metres.image[2, 4].astype(int)
    assert np.abs(near - far).sum() > 100


def test_colours_are_drawn_as_they_are_whether_the_model_gets_them_reversed_or_not():
    red = torch.zeros(3, 4, 5, dtype=torch.uint8)
    red[2] = 255  # files are read as BGR
    for reverse in ([], ["rgb"]):
        preprocessor = MODELS.build(dict(type="MultimodalSegDataPreProcessor", modalities=["rgb"], bgr_to_rgb=reverse,
                                         mean=dict(rgb=[10.0, 20.0, 30.0]), std=dict(rgb=[60.0] * 3)))
        stacked = preprocessor(dict(inputs=[dict(rgb=red)]))["inputs"][0]
        assert sensor_panels(preprocessor, stacked)[0].image[0, 0].tolist() == [255, 0, 0]


def test_a_frame_without_a_label_is_drawn_without_it(frames, tmp_path):
    preprocessor = MODELS.build(model_cfg()["data_preprocessor"])
    dataset = DATASETS.build(dataset_cfg(frames, [LOAD[0], PACK], test_mode=True,
                                         data_prefix=dict(rgb="RGB", depth="Depth")))
    path = draw_sample(dataset, preprocessor, preprocessor(pseudo_collate([dataset[0]])), tmp_path / "test_000")
    assert path.name == "test_000_1.png"
    assert cv2.imread(str(path)).std() > 5


def test_a_missing_sensor_is_called_missing():
    preprocessor = MODELS.build(model_cfg()["data_preprocessor"])
    panels = sensor_panels(preprocessor, torch.zeros(4, 4, 5), dict(rgb=True, depth=False))
    assert panels[1].caption == "depth: missing"
    assert (panels[1].image.std(axis=2) == 0).all()


def test_labels_wear_the_palette_and_ignored_pixels_do_not():
    label = np.array([[0, 1, 255]])
    image = label_panel(label, [[10, 20, 30], [40, 50, 60]], "label").image
    assert image[0, :2].tolist() == [[10, 20, 30], [40, 50, 60]]
    assert image[0, 2].tolist() not in ([10, 20, 30], [40, 50, 60])


def test_errors_count_labelled_pixels_alone():
    panel = error_panel(np.array([[0, 1, 255, 1]]), np.array([[0, 0, 0, 1]]))
    assert panel.caption == "errors (33% of labelled)"
    assert panel.image[0, 0].tolist() == list(RIGHT)
    assert panel.image[0, 1].tolist() == list(WRONG)


def test_a_grid_becomes_one_picture(tmp_path):
    panel = Panel(np.full((20, 30, 3), 200, np.uint8), "caption")
    path = draw_grid([[panel, panel], [panel]], ["first", "second"], tmp_path / "new" / "grid.png", ["soil", "crop"],
                     [[0, 0, 0], [255, 0, 0]], [0, 1, 255], "title")
    image = cv2.imread(str(path))
    assert image.shape[1] > 500
    assert image.std() > 5


def test_a_grey_level_at_the_mean_is_no_unknown_pixel():
    """Normalised it is 0, as padding is; only a sensor with invalid readings says "unknown" by that."""
    preprocessor = MODELS.build(dict(
        type="MultimodalSegDataPreProcessor", modalities=["red", "nir"], mean=dict(red=[80.0], nir=[80.0]),
        std=dict(red=[20.0], nir=[20.0])))
    stacked = torch.tensor([[[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]])  # the last pixel is padding
    red, nir = sensor_panels(preprocessor, stacked)
    assert red.image[0, 0].tolist() == [80, 80, 80]
    assert nir.image[0, 1].tolist() == [80, 80, 80]
    assert red.caption == "red 80 to 100"


def test_pictures_leave_the_plotting_backend_alone(tmp_path):
    """pyplot belongs to the user's notebook."""
    import matplotlib

    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        draw_grid([[Panel(np.zeros((8, 8, 3), np.uint8), "caption")]], ["name"], tmp_path / "grid.png")
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)


def test_every_name_of_a_grid_lies_inside_the_picture(tmp_path):
    """Dark ink in the first pixels of a line would be a name cut off."""
    panel = Panel(np.full((8, 40, 3), 200, np.uint8), "caption")
    image = cv2.imread(str(draw_grid([[panel]] * 3, ["gjpqy"] * 3, tmp_path / "grid.png")))
    assert (image[:3] == 255).all()
    assert (image[-3:] == 255).all()
    assert (image[:, :3] == 255).all()
