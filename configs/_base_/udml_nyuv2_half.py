"""What every udml-*_r18-segformer_nyuv2-half.py shares: they differ in model.neck alone."""
_base_ = [
    './default_runtime.py', './data/nyuv2_half.py', './models/udml_rgbd_r18.py', './schedules/scratch_1200.py']
model = dict(data_preprocessor=dict(size=(192, 256)), decode_head=dict(num_classes=40))
