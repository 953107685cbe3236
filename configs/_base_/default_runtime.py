"""What every segmentation config shares. Defaults suit a machine with few cores; the seed is fixed."""
default_scope = 'mmseg'
custom_imports = dict(imports=['mmfusion_plugin'], allow_failed_imports=False)

env_cfg = dict(
    cudnn_benchmark=True,
    # one thread per loader process: more loaders beat more threads
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
randomness = dict(seed=0)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
tta_model = dict(type='SegTTAModel')

log_level = 'INFO'
load_from = None
resume = False
