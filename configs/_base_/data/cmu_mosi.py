"""CMU-MOSI: sentiment of an utterance from text, sound and face features, 1,447 train / 326 test utterances.

Features of bc-LSTM (Poria et al., ACL 2017), published in declare-lab's multimodal-deep-learning, as train.npz and
val.npz in data/cmu_mosi: text (N, 100), audio (N, 73), video (N, 100), label (N,) with 1 for positive. train.npz
holds the usual 62 training videos, val.npz 16 of the usual test videos. Text and video features come from networks
that were fitted to the training labels: a linear classifier reaches 98 % on any part of train.npz with the text alone
and 76 % on val.npz. Never validate on a part of train.npz. The larger class holds 61 % of val.npz.
Another folder: --cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR
test_dataloader.dataset.data_root=DIR.
"""
data_root = 'data/cmu_mosi'
dataset = dict(
    type='FeatureDataset',
    data_root=data_root,
    arrays=dict(text='text', audio='audio', video='video'),
    label='label',
    metainfo=dict(classes=['negative', 'positive']),
    standardize=dict(file='train.npz'),  # no statistics of test data
    pipeline=[dict(type='PackFeatures', modalities=['text', 'audio', 'video'])])
train_dataloader = dict(
    batch_size=64,
    num_workers=0,  # everything is in memory
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, ann_file='train.npz'))
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='val.npz'))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='AccMetric', metric_list=('top_k_accuracy', ), metric_options=dict(top_k_accuracy=dict(topk=(1, ))))
test_evaluator = val_evaluator
