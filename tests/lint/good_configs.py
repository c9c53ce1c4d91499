"""Healthy configs in the conventions of public projects, each written for this test: lint must not warn of any."""

GOOD = {
    "phrases.yaml": """
backchannel: ["yes", "of course", "true", "right"]
""",
    "speechbrain_half.yaml": """
seed: 1234
lr: 1e-4
precision: fp16
epoch_counter: !new:speechbrain.utils.epoch_loop.EpochCounter
  limit: 30
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
  checkpoints_dir: save
""",
    "nanogpt.py": """
out_dir = 'out-shakespeare-char'
eval_interval = 250
eval_iters = 200
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
""",
    "hf_sft.yaml": """
model_name_or_path: meta-llama/Llama-2-7b-hf
torch_dtype: "bfloat16"
output_dir: out/sft
per_device_train_batch_size: 4
per_device_eval_batch_size: 8
gradient_accumulation_steps: 8
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
learning_rate: 2.0e-05
lr_scheduler_type: cosine
max_steps: -1
num_train_epochs: 3
warmup_ratio: 0.1
bf16: true
report_to: ["none"]
logging_steps: 10
save_strategy: "no"
push_to_hub: false
""",
    "hf_args.json": """
{
    "output_dir": "out/glue", "do_train": true, "do_eval": true,
    "per_device_train_batch_size": 32, "learning_rate": 2e-5, "num_train_epochs": 3,
    "warmup_steps": 500, "weight_decay": 0.01, "logging_steps": 50, "evaluation_strategy": "steps",
    "eval_steps": 500, "save_total_limit": 2, "fp16": true, "seed": 42
}
""",
    "llama_factory.yaml": """
### model
model_name_or_path: Qwen/Qwen2-7B-Instruct
trust_remote_code: true
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
### dataset
dataset: identity,alpaca_en_demo
template: qwen
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: saves/qwen/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
""",
    "lightning_cli.yaml": """
seed_everything: 42
trainer:
  accelerator: auto
  devices: 4
  max_epochs: 100
  max_steps: -1
  precision: 16-mixed
  gradient_clip_val: 1.0
  accumulate_grad_batches: 2
  callbacks:
    - class_path: lightning.pytorch.callbacks.LearningRateMonitor
      init_args:
        logging_interval: epoch
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val_loss, save_top_k: 3}
model:
  class_path: project.models.Classifier
  init_args:
    lr: 3e-4
    weight_decay: 1e-2
data:
  class_path: project.data.ImageNet
  init_args:
    data_dir: /datasets/imagenet
    batch_size: 256
    num_workers: 8
ckpt_path: null
""",
    "hydra_train.yaml": """
# @package _global_
defaults:
  - _self_
  - data: mnist
  - model: mnist
  - callbacks: default
  - logger: null
  - trainer: default
  - experiment: null
  - optional local: default
task_name: "train"
tags: ["dev"]
train: True
test: True
ckpt_path: null
seed: null
lr: 1e-4
""",
    "hydra_model.yaml": """
_target_: src.models.mnist_module.MNISTLitModule
optimizer:
  _target_: torch.optim.Adam
  _partial_: true
  lr: 1e-3
  weight_decay: 0.0
scheduler:
  _target_: torch.optim.lr_scheduler.ReduceLROnPlateau
  _partial_: true
  mode: min
  factor: 0.1
  patience: 10
net:
  _target_: src.models.components.simple_dense_net.SimpleDenseNet
  input_size: 784
  lin1_size: 64
compile: false
""",
    "detectron2.yaml": """
_BASE_: "../Base-RCNN-FPN.yaml"
MODEL:
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
  MASK_ON: True
  RESNETS:
    DEPTH: 50
DATASETS:
  TRAIN: ("coco_2017_train",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 1e-4
  STEPS: (210000, 250000)
  MAX_ITER: 270000
  WARMUP_ITERS: 1000
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704)
VERSION: 2
""",
    "mmdetection.py": """
_base_ = ['../_base_/models/faster-rcnn_r50_fpn.py', '../_base_/default_runtime.py']
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1)]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001))
auto_scale_lr = dict(enable=False, base_batch_size=16)
""",
    "fairseq.yaml": """
# @package _group_
common:
  fp16: true
  log_format: json
  log_interval: 200
checkpoint:
  save_interval: 25
  save_interval_updates: 25000
  no_epoch_checkpoints: true
task:
  _name: audio_pretraining
  data: ???
  max_sample_size: 250000
dataset:
  num_workers: 6
  max_tokens: 1400000
optimization:
  max_update: 400000
  lr: [0.0005]
  update_freq: [4]
optimizer:
  _name: adam
  adam_betas: (0.9,0.98)
  adam_eps: 1e-06
  weight_decay: 0.01
lr_scheduler:
  _name: polynomial_decay
  warmup_updates: 32000
  total_num_update: 400000
model:
  _name: wav2vec2
  latent_temp: [2.0,0.5,0.999995]
hydra:
  run: {dir: "${oc.env:PWD}/outputs"}
""",
    "deepspeed_zero3.json": """
{
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": 1e-8, "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": true}, "overlap_comm": true,
        "sub_group_size": 1e9, "stage3_max_live_parameters": 1e9
    },
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": false
}
""",
    "deepspeed_plain.json": """
{
\t"train_batch_size": 256,
\t"train_micro_batch_size_per_gpu": 4,
\t"gradient_accumulation_steps": 8,
\t"optimizer": {"type": "Adam", "params": {"lr": 0.00015, "betas": [0.9, 0.95]}},
\t"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 10000, "warmup_num_steps": 500}},
\t"fp16": {"enabled": true}, "bf16": {"enabled": false}
}
""",
    "axolotl.yml": """
base_model: NousResearch/Llama-2-7b-hf
model_type: LlamaForCausalLM
load_in_8bit: true
strict: false
datasets:
  - path: mhenrichsen/alpaca_2k_test
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
output_dir: ./outputs/lora-out
sequence_len: 4096
sample_packing: true
adapter: lora
lora_r: 32
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
train_on_inputs: false
bf16: auto
tf32: false
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
""",
    "torchtune.yaml": """
output_dir: /tmp/torchtune/llama2_7B/lora
model:
  _component_: torchtune.models.llama2.lora_llama2_7b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  lora_rank: 8
tokenizer:
  _component_: torchtune.models.llama2.llama2_tokenizer
  path: /tmp/Llama-2-7b-hf/tokenizer.model
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/Llama-2-7b-hf
  checkpoint_files: [pytorch_model-00001-of-00002.bin, pytorch_model-00002-of-00002.bin]
  recipe_checkpoint: null
resume_from_checkpoint: False
batch_size: 2
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  weight_decay: 0.01
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
epochs: 1
max_steps_per_epoch: null
gradient_accumulation_steps: 8
""",
    "olmo.yaml": """
run_name: OLMo-1B
seed: 6198
dry_run: false
model:
  d_model: 2048
  n_heads: 16
  n_layers: 16
  weight_tying: true
  vocab_size: 50280
optimizer:
  name: adamw
  learning_rate: 4.0e-4
  weight_decay: 0.1
  betas: [0.9, 0.95]
scheduler:
  name: cosine_with_warmup
  t_warmup: 2000
  alpha_f: 0.1
save_folder: ${path.choose:${oc.env:SCRATCH_DIR,no_exist}/checkpoints,/results}/${run_name}
save_interval: 1000
max_duration: 739_328
global_train_batch_size: 2048
device_train_microbatch_size: 8
precision: amp_bf16
max_grad_norm: 1.0
evaluators:
  - label: all-small-ppl-validation
    data: {num_workers: 0, drop_last: true}
  - label: piqa
    type: downstream
""",
    "torchtitan.toml": """
[job]
dump_folder = "./outputs"
description = "Llama 3 debug training"
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer_path = "./tests/assets/test_tiktoken.model"
[optimizer]
name = "AdamW"
lr = 8e-4
eps = 1e-8
[lr_scheduler]
warmup_steps = 2
decay_ratio = 0.8
[training]
local_batch_size = 8
seq_len = 2048
max_norm = 1.0
steps = 10
[checkpoint]
enable_checkpoint = false
interval = 500
""",
    "ultralytics.yaml": """
task: detect
mode: train
model: yolov8n.pt
data: coco128.yaml
epochs: 100
patience: 50
batch: 16
imgsz: 640
save_period: -1
cache: False
device: null
optimizer: auto
lr0: 0.01
lrf: 0.01
momentum: 0.937
weight_decay: 0.0005
warmup_epochs: 3.0
warmup_momentum: 0.8
close_mosaic: 10
resume: False
""",
    "openmmlab_nerf.yaml": """
optimizer: {type: Adam, lr: 0.0005}
max_iters: 200000
lr_decay: 500
lr_decay_steps: 250000
decay_rate: 0.1
""",
    "stable_diffusion.yaml": """
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scheduler_config:
      target: ldm.lr_scheduler.LambdaLinearScheduler
      params:
        warm_up_steps: [10000]
        cycle_lengths: [10000000000000]
        f_start: [1.e-6]
        f_max: [1.]
    loss_type: l2
data:
  target: main.DataModuleFromConfig
  params:
    batch_size: 4
    num_workers: 4
lightning:
  trainer:
    benchmark: True
    accumulate_grad_batches: 2
""",
    "accelerate.yaml": """
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: MULTI_GPU
downcast_bf16: 'no'
gpu_ids: "0,1"
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
use_cpu: false
""",
    "espnet.yaml": """
optim: adam
optim_conf:
    lr: 0.002
    weight_decay: 0.000001
scheduler: warmuplr
scheduler_conf:
    warmup_steps: 15000
max_epoch: 100
patience: none
accum_grad: 4
batch_type: numel
batch_bins: 10000000
best_model_criterion:
-   - valid
    - acc
    - max
init: xavier_uniform
encoder: conformer
encoder_conf: {output_size: 512, attention_heads: 8, linear_units: 2048, num_blocks: 12, dropout_rate: 0.1}
decoder: transformer
""",
    "speechbrain.yaml": """
seed: 1234
output_folder: !ref results/<seed>
save_folder: !ref <output_folder>/save
train_log: !ref <output_folder>/train_log.txt
number_of_epochs: 15
batch_size: 8
lr: 1.0
optimizer: !name:torch.optim.Adadelta
    lr: !ref <lr>
    rho: 0.95
    eps: 1.e-8
enc: !new:speechbrain.lobes.models.CRDNN
    input_shape: [null, null, 40]
""",
    "rllib.yaml": """
cartpole-ppo:
    env: CartPole-v1
    run: PPO
    stop:
        episode_reward_mean: 150
        timesteps_total: 100000
    config:
        framework: torch
        gamma: 0.99
        lr: 0.0003
        num_workers: 1
        observation_filter: MeanStdFilter
        num_sgd_iter: 6
        vf_loss_coeff: 0.01
""",
    "sb3_zoo.yml": """
CartPole-v1:
  n_envs: 8
  n_timesteps: !!float 1e5
  policy: 'MlpPolicy'
  n_steps: 32
  batch_size: 256
  learning_rate: lin_0.001
  ent_coef: 0.0
Pendulum-v1:
  n_envs: 4
  n_timesteps: !!float 1e5
  policy: 'MlpPolicy'
  n_steps: 1024
  learning_rate: !!float 1e-3
  clip_range: lin_0.2
MountainCar-v0:
  normalize: true
  n_envs: 16
  n_timesteps: !!float 1e6
  policy: 'MlpPolicy'
  n_steps: 16
Acrobot-v1:
  normalize: true
  n_envs: 16
  n_timesteps: !!float 1e6
  policy: 'MlpPolicy'
  n_steps: 256
""",
    "dqn.yaml": """
env: BreakoutNoFrameskip-v4
total_timesteps: 10000000
learning_rate: 0.0001
buffer_size: 1000000
exploration_fraction: 0.1
epsilon_decay_steps: 1000000
target_update_interval: 1000
learning_starts: 80000
train_frequency: 4
""",
    "gpt_neox.yml": """
{
  "pipe_parallel_size": 1,
  "model_parallel_size": 1,
  "num_layers": 12,
  "hidden_size": 768,
  "num_attention_heads": 12,
  "seq_length": 2048,
  "pos_emb": "rotary",
  "init_method": "small_init",
  "optimizer": {"type": "Adam", "params": {"lr": 0.0006, "betas": [0.9, 0.95], "eps": 1.0e-8}},
  "min_lr": 0.00006,
  "train_micro_batch_size_per_gpu": 4,
  "data_impl": "mmap",
  "gradient_clipping": 1.0,
  "fp16": {"fp16": true, "enabled": true, "loss_scale": 0},
  "train_iters": 320000,
  "lr_decay_iters": 320000,
  "distributed_backend": "nccl",
  "lr_decay_style": "cosine",
  "warmup": 0.01,
  "checkpoint_factor": 10000,
  "eval_interval": 1000,
  "log_interval": 100,
}
""",
    "nemo.yaml": """
name: megatron_gpt
trainer:
  devices: 8
  num_nodes: 1
  precision: 16
  max_epochs: -1
  max_steps: 100000
  log_every_n_steps: 10
  val_check_interval: 100
  accumulate_grad_batches: 1
  gradient_clip_val: 1.0
exp_manager:
  explicit_log_dir: null
  resume_if_exists: True
  resume_ignore_no_checkpoint: True
model:
  micro_batch_size: 4
  global_batch_size: 8
  tokenizer: {library: megatron, type: GPT2BPETokenizer, vocab_file: null}
  optim:
    name: distributed_fused_adam
    lr: 2e-4
    sched: {name: CosineAnnealing, warmup_steps: 500, constant_steps: 50000, min_lr: 2e-5}
  data: {data_prefix: "${oc.env:DATA}", index_mapping_dir: null}
""",
    "mosaic_foundry.yaml": """
max_seq_len: 2048
global_seed: 17
variables: {data_local: ./my-copy-c4}
model: {name: mpt_causal_lm, init_device: meta, d_model: 768, n_heads: 12, n_layers: 12}
train_loader:
  name: text
  dataset: {local: "${variables.data_local}", split: train, shuffle: true}
  drop_last: true
  num_workers: 8
scheduler: {name: cosine_with_warmup, t_warmup: 100ba, alpha_f: 0.1}
optimizer: {name: decoupled_adamw, lr: 6.0e-4, betas: [0.9, 0.95], eps: 1.0e-08, weight_decay: 0.0}
max_duration: 4800ba
eval_interval: 500ba
global_train_batch_size: 256
precision: amp_bf16
callbacks:
  speed_monitor: {window_size: 10}
  lr_monitor: {}
""",
    "timm.yaml": """
aa: rand-m9-mstd0.5
batch_size: 128
clip_grad: null
cooldown_epochs: 10
data_dir: /imagenet
decay_epochs: 2.4
decay_rate: 0.97
drop: 0.2
epochs: 450
lr: 0.048
min_lr: 1.0e-05
momentum: 0.9
opt: rmsproptf
opt_eps: 0.001
warmup_epochs: 3
warmup_lr: 1.0e-06
weight_decay: 1.0e-05
sched: step
initial_checkpoint: ''
resume: ''
""",
    "keras_like.json": """
{"model": {"layers": [{"type": "Dense", "units": 64}, {"type": "Dropout", "rate": 0.5}]},
 "training": {"epochs": 20, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.001}}}
""",
    "sweep.yaml": """
program: train.py
method: bayes
metric: {name: val/loss, goal: minimize}
parameters:
  learning_rate: {distribution: log_uniform_values, min: 0.00001, max: 0.1}
  batch_size: {values: [16, 32, 64]}
  epochs: {value: 20}
  optimizer: {values: ["adam", "sgd"]}
""",
    "ray_job.yaml": """
entrypoint: python train.py --lr 1e-4
runtime_env:
  working_dir: ./
  env_vars: {WANDB_DISABLED: "true", OMP_NUM_THREADS: "8"}
submission_id: "0042"
""",
    "docker.yaml": """
version: "3.8"
services:
  train:
    image: "pytorch:2"
    environment: {NCCL_DEBUG: INFO, EPOCHS: "3"}
    ports: ["8888:8888"]
""",
    "merge.yaml": """
base: &base
  batch_size: 32
  lr: 0.001
  epochs: 10
large:
  <<: *base
  batch_size: 64
small:
  <<: [*base]
  lr: 0.01
""",
    "stages_in_shares.yaml": """
total_steps: 10000
curriculum:
  name: EXTENDED
  stages:
    - {name: clean, start: 0.0, end: 0.3}
    - {name: noisy, start: 0.3, end: 1.0}
warmup_ratio: 0.05
""",
    "curriculum_fits.yaml": """
max_steps: 50000
losses: [sequence, spectrum, precursor]
loss_weights: {sequence: 1.0, spectrum: 0.1, precursor: 0.05}
curriculum:
  stages:
    - {name: a, start: 0, weights: {sequence: 1.0}}
    - {name: b, start: 20000, weights: {sequence: 1.0, spectrum: 0.1}}
    - {name: c, start: 40000, weights: {sequence: 1.0, precursor: 0.05}}
""",
    "arithmetic.yaml": """
epochs: 3
num_samples: 10000
batch_size: 16
gradient_accumulation_steps: 4
total_steps: 471
warmup_steps: 50
""",
    "multi_phase.yaml": """
phases:
  pretrain: {max_steps: 100000, warmup_steps: 2000, lr: 0.0003}
  finetune: {max_steps: 1000, warmup_steps: 50, lr: 0.00003}
  distill: {max_steps: 5000, warmup_steps: 100, lr: 0.0001}
  probe: {max_steps: 500, lr: 0.01}
""",
    "gan.yaml": """
generator: {lr: 0.0002, betas: [0.5, 0.999], optimizer: adam}
discriminator: {lr: 0.0004, betas: [0.5, 0.999], optimizer: adam}
max_iters: 200000
lambda_gp: 10
ema_rampup: 0.05
lambdas: {adv: 1.0, cycle: 10.0, identity: 5.0}
""",
    "kaldi_like.toml": """
title = "run"
[train]
epochs = 30
batch_size = 64
lr = 1e-3
seed = 7
[[stage]]
name = "warm"
steps = 1000
[[stage]]
name = "main"
steps = 9000
""",
    "optimiser_british.yaml": """
optimiser: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.0005}
normalise: true
scheduler: {name: multistep, milestones: [60, 120, 160], gamma: 0.2}
epochs: 200
patch_size: 16
val_batch_size: 64
""",
    "wandb_artifact.yaml": """
wandb: {project: demo, entity: me, tags: ["1", "2"], id: "12345678"}
commit: 1e10
git_sha: 12e4567
steps_per_epoch: 100
epochs: 10
""",
    "documents.yaml": """
name: first
epochs: 2
---
name: second
epochs: 3
""",
    "colossal.py": """
BATCH_SIZE = 8
NUM_EPOCHS = 60
SEQ_LENGTH = 512
fp16 = dict(mode=None)
parallel = dict(pipeline=1, tensor=dict(size=4, mode='2d'))
""",
    "trl_dpo.yaml": """
model_name_or_path: alignment-handbook/zephyr-7b-sft-full
dataset_mixer: {HuggingFaceH4/ultrafeedback_binarized: 1.0}
dataset_splits: [train_prefs, test_prefs]
preprocessing_num_workers: 12
bf16: true
beta: 0.01
do_eval: true
eval_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 2
gradient_checkpointing: true
hub_model_id: zephyr-7b-dpo-full
learning_rate: 5.0e-7
log_level: info
logging_steps: 10
lr_scheduler_type: cosine
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
optim: adamw_torch
output_dir: data/zephyr-7b-dpo-full
per_device_train_batch_size: 8
warmup_ratio: 0.1
""",
}
