"""What trainings print, family by family: the counters, losses and evaluations on the lines, and nothing else."""

# ruff: noqa: E501  (a printed line is as long as its trainer prints it)
import math
import os

import numpy as np
import pytest

from trainwatch.foreign.printed import scan
from trainwatch.readers import ReadError, open_run, read, read_all
from trainwatch.table import Chunk

nan = math.nan
FAMILIES = {
    "megatron": (
        """
 iteration   100/  500 | consumed samples:  800 | elapsed time per iteration (ms): 123.4 | learning rate: 1.000E-04 | lm loss: 6.700000E+00 | moe loss: 1.0E-02 | loss scale: 1.0 | grad norm: 1.200 | number of skipped iterations:   0 | number of nan iterations:   0 |
 iteration   200/  500 | consumed samples: 1600 | elapsed time per iteration (ms): 120.4 | learning rate: 2.000E-04 | lm loss: 5.700000E+00 | moe loss: 1.1E-02 | loss scale: 1.0 | grad norm: nan | number of skipped iterations:   0 | number of nan iterations:   1 |
-----------------------------------------------------------------------------------------------
 validation loss at iteration 200 | lm loss value: 5.500000E+00 | lm loss PPL: 2.446919E+02 |
""",
        {
            "loss/lm": [(100, 6.7), (200, 5.7)],
            "loss/moe": [(100, 0.01), (200, 0.011)],
            "grad_norm": [(100, 1.2), (200, nan)],
        },
        {"loss/lm": [(200, 5.5)], "metric/lm_loss_PPL": [(200, 244.6919)]},
    ),
    "nanoGPT": (
        """
tokens per iteration will be: 491,520
number of parameters: 10.65M
step 0: train loss 4.2874, val loss 4.2823
iter 0: loss 4.2664, time 1234.56ms, mfu -100.00%
iter 10: loss 3.1423, time 12.34ms, mfu 30.12%
step 10: train loss 2.5, val loss 2.6
""",
        {"loss": [(0, 4.2664), (10, 3.1423)]},
        {"loss": [(0, 4.2874), (0, 4.2823), (10, 2.5), (10, 2.6)]},
    ),
    "modded-nanogpt": (
        """
step:1/1750 train_time:100ms step_avg:nanms
step:125/1750 val_loss:4.6 train_time:11000ms step_avg:95.1ms
step:250/1750 val_loss:4.1 train_time:22000ms step_avg:95.2ms
""",
        {},
        {"loss": [(125, 4.6), (250, 4.1)]},
    ),
    "llm.c": (
        """
step    1/18865 | loss 10.9 (+nanz)| norm 23.2 (+nanz)| lr 8.57e-07 | 3056.36 ms | 42.6% bf16 MFU | 171545 tok/s
step    2/18865 | loss 10.8 (+1.20z)| norm 22.2 (+0.1z)| lr 1.71e-06 | 3056.36 ms | 42.6% bf16 MFU | 171545 tok/s
val loss 10.7
""",
        {"loss": [(1, 10.9), (2, 10.8)], "grad_norm": [(1, 23.2), (2, 22.2)], "lr/main": [(1, 8.57e-7), (2, 1.71e-6)]},
        {"loss": [(2, 10.7)]},
    ),
    "CycleGAN": (
        """
================ Training Loss (Mon Mar  4 11:02:13 2024) ================
(epoch: 1, iters: 100, time: 0.412, data: 3.114) cyc: 2.375 dis: 0.625 real_B: 0.250
(epoch: 1, iters: 200, time: 0.398, data: 0.002) cyc: 1.875 dis: 0.750 real_B: 0.375
""",
        {
            "loss/cyc": [(100, 2.375), (200, 1.875)],
            "loss/dis": [(100, 0.625), (200, 0.75)],
            "loss/real_B": [(100, 0.25), (200, 0.375)],
        },
        {},
    ),
    "headlines of hashes": (
        """
####Train#### Epoch: 1, Net_Loss: 6.5000, Critic_Loss: -0.5000,
####Valid#### Epoch: 1, l1_loss: 0.0250, psnr_loss: 27.5000,     ssim_loss: 0.6250,
####Train#### Epoch: 2, Net_Loss: 5.5000, Critic_Loss: -0.2500,
####Valid#### Epoch: 2, l1_loss: 0.0125, psnr_loss: 29.0000,     ssim_loss: 0.7500,
""",
        {"loss/Net": [(1, 6.5), (2, 5.5)], "loss/Critic": [(1, -0.5), (2, -0.25)]},
        {"loss": [(1, 0.025), (2, 0.0125)], "logged/psnr_loss": [(1, 27.5), (2, 29.0)]},
    ),
    "YOLOv5": (
        """
train: weights=yolov5s.pt, cfg=, data=coco128.yaml, epochs=3, batch_size=16, imgsz=640, rect=False, resume=False, evolve=None, bucket=
hyperparameters: lr0=0.01, lrf=0.01, momentum=0.937, weight_decay=0.0005, warmup_epochs=3.0, box=0.05, cls=0.5, obj=1.0
optimizer: SGD(lr=0.01) with parameter groups 57 weight(decay=0.0), 60 weight(decay=0.0005), 60 bias
train: Scanning 'labels.cache' images and labels... 128 found, 0 missing, 2 empty, 0 corrupt: 100%|██████████| 128/128 [00:00<?, ?it/s]

     Epoch   gpu_mem       box       obj       cls    labels  img_size
  0%|          | 0/8 [00:00<?, ?it/s]\r       0/2     3.62G   0.04721    0.0731    0.0212       203       640:   0%|          | 0/8 [00:00<?, ?it/s]\r       0/2     3.62G   0.04721    0.0731    0.0212       203       640:  50%|█████     | 4/8 [00:02<00:02,  1.93it/s]\r       0/2     3.62G   0.04621    0.0711   0.02112       203       640: 100%|██████████| 8/8 [00:04<00:00,  1.93it/s]
               Class     Images     Labels          P          R     mAP@.5 mAP@.5:.95:   0%|          | 0/4 [00:00<?, ?it/s]\r               Class     Images     Labels          P          R     mAP@.5 mAP@.5:.95: 100%|██████████| 4/4 [00:00<00:00,  4.37it/s]
                 all        128        929      0.577      0.414       0.46      0.279

     Epoch   gpu_mem       box       obj       cls    labels  img_size
       1/2     3.62G   0.04518       nan   0.02002       218       640: 100%|██████████| 8/8 [00:04<00:00,  1.93it/s]
               Class     Images     Labels          P          R     mAP@.5 mAP@.5:.95: 100%|██████████| 4/4 [00:00<00:00,  4.37it/s]
                 all        128        929      0.601      0.432       0.49      0.302
              person        128        254       0.69      0.582       0.64       0.31

Validating runs/train/exp/weights/best.pt...
               Class     Images     Labels          P          R     mAP@.5 mAP@.5:.95: 100%|██████████| 4/4 [00:00<00:00,  4.37it/s]
                 all        128        929      0.611      0.442      0.501      0.312
""",
        {
            "loss/box": [(4, 0.04721), (8, 0.04621), (16, 0.04518)],
            "loss/obj": [(4, 0.0731), (8, 0.0711), (16, nan)],
            "loss/cls": [(4, 0.0212), (8, 0.02112), (16, 0.02002)],
            "epoch": [(4, 0), (8, 0), (16, 1)],
        },
        {"metric/recall": [(8, 0.414), (16, 0.432)], "metric/mAP_5_95": [(8, 0.279), (16, 0.302)]},
    ),
    "YOLOv8 segmentation": (
        """
engine/trainer: task=segment, mode=train, model=yolov8n-seg.pt, data=coco8.yaml, epochs=20, batch=4, cos_lr=False, amp=True, lr0=0.01
optimizer: AdamW(lr=0.001667, momentum=0.9) with parameter groups 66 weight(decay=0.0), 77 weight(decay=0.0005), 76 bias(decay=0.0)

      Epoch    GPU_mem   box_loss   seg_loss   cls_loss   dfl_loss  Instances       Size
       1/20      1.19G      1.018      4.013      3.009      1.465          2        640: 100% ━━━━━━━━━━━━ 4/4 2.7it/s 1.5s
                 Class     Images  Instances      Box(P          R      mAP50  mAP50-95)     Mask(P          R      mAP50  mAP50-95): 100% 1/1 [00:00<00:00,  5.55it/s]
                   all          7         14    0.00667          1      0.307      0.197    0.00567        0.9      0.207      0.097

      Epoch    GPU_mem   box_loss   seg_loss   cls_loss   dfl_loss  Instances       Size
       2/20      1.16G     0.8308      3.831      2.856      1.328          2        640: 100% ━━━━━━━━━━━━ 4/4 7.2it/s 0.5s
                 Class     Images  Instances      Box(P          R      mAP50  mAP50-95)     Mask(P          R      mAP50  mAP50-95): 100% 1/1 [00:00<00:00,  5.55it/s]
                   all          7         14    0.00767          1      0.407      0.297    0.00667        0.8      0.307      0.197
""",
        {
            "loss/box": [(4, 1.018), (8, 0.8308)],
            "loss/seg": [(4, 4.013), (8, 3.831)],
            "loss/cls": [(4, 3.009), (8, 2.856)],
            "loss/dfl": [(4, 1.465), (8, 1.328)],
        },
        {"metric/recall": [(4, 1), (8, 1)], "metric/mask_recall": [(4, 0.9), (8, 0.8)]},
    ),
    "detectron2 evaluation": (
        """
[11/17 15:16:17] detectron2 INFO: Running with full config:
SOLVER:
  BASE_LR: 0.02
  MAX_ITER: 56979
  FOCAL_LOSS_ALPHA: 0.25
[11/17 15:17:23] d2.utils.events INFO:  eta: 10:35:38  iter: 19  total_loss: 4.5  loss_cls: 3.5  loss_box_reg: 1  lr: 0.0002  max_mem: 7043M
[11/17 15:30:45] d2.evaluation.testing INFO: copypaste: Task: bbox
[11/17 15:30:45] d2.evaluation.testing INFO: copypaste: AP,AP50,APl
[11/17 15:30:45] d2.evaluation.testing INFO: copypaste: 3.0706,6.8876,nan
[11/17 15:31:23] d2.utils.events INFO:  eta: 10:35:38  iter: 39  total_loss: 4  loss_cls: 3.1  loss_box_reg: 0.9  lr: 0.0004  max_mem: 7043M
""",
        {
            "loss": [(19, 4.5), (39, 4)],
            "loss/cls": [(19, 3.5), (39, 3.1)],
            "loss/box_reg": [(19, 1), (39, 0.9)],
            "lr/main": [(19, 0.0002), (39, 0.0004)],
        },
        {"metric/bbox_AP50": [(19, 6.8876)], "metric/bbox_APl": [(19, nan)]},
    ),
    "fastai": (
        """
Loading the data took a while.
epoch     train_loss  valid_loss  accuracy  time
0         1.201353    0.998543    0.712000  00:05
1         0.801353    0.698543    0.812000  00:05
""",
        {"loss": [(0, 1.201353), (1, 0.801353)]},
        {"loss": [(0, 0.998543), (1, 0.698543)]},
    ),
    "torchtitan": (
        "[titan] 2024-10-30 12:00:00,000 - root - INFO - \x1b[31mstep:  1  \x1b[32mloss: 12.2442  \x1b[33mmemory: 27.4GiB\x1b[39m\n"
        "[titan] 2024-10-30 12:00:09,000 - root - INFO - \x1b[31mstep: 10  \x1b[32mloss: 11.0  \x1b[38;2;180;60;0mgrad_norm:  2.5\x1b[39m\n",
        {"loss": [(1, 12.2442), (10, 11.0)], "grad_norm": [(10, 2.5)]},
        {},
    ),
    "nanochat": (
        """
step 00000/21400 (0.00%) | loss: 11.090355 | grad norm: 0.5 | lrm: 1.00 | dt: 16213.1ms | tok/sec: 32,337 | mfu: 3.1
step 00001/21400 (0.00%) | loss: 10.8 | grad norm: 0.4 | lrm: 1.00 | dt: 500.1ms | tok/sec: 1,048,576 | mfu: 48.1
Step 00250 | Validation bpb: 1.1
""",
        {"loss": [(0, 11.090355), (1, 10.8)], "logged/tok_sec": [(0, 32337), (1, 1048576)]},
        {"metric/bpb": [(250, 1.1)]},
    ),
    "OLMo": (
        """
2025-01-01 12:00:00.000\thost:0\tolmo_core.train.callbacks.console_logger:86\tINFO\t[step=1/1000,epoch=1,eta=1:00:00]
    optim/LR (group 0)=2.000E-06
    optim/total grad norm=15.25
    train/CE loss=10.5
    train/PPL=36,315.50
2025-01-01 12:00:10.000\thost:0\tolmo_core.train.callbacks.console_logger:86\tINFO\t[step=2/1000,epoch=1,eta=1:00:00]
    optim/LR (group 0)=4.000E-06
    train/CE loss=10.25
""",
        {"loss": [(1, 10.5), (2, 10.25)], "grad_norm": [(1, 15.25)], "logged/train_PPL": [(1, 36315.5)]},
        {},
    ),
    "fairseq": (
        """
2020-03-20 12:00:00 | INFO | train_inner | epoch 001:    100 / 5000 loss=9.5, nll_loss=9.3, ppl=630.3, num_updates=100, lr=1.25e-05, gnorm=2.5
2020-03-20 12:00:00 | INFO | train_inner | epoch 001:    200 / 5000 loss=8.5, nll_loss=8.3, ppl=315.2, num_updates=200, lr=2.5e-05, gnorm=2.1
2020-03-20 12:00:00 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 8.2 | nll_loss 8 | ppl 256 | num_updates 200
""",
        {"loss": [(100, 9.5), (200, 8.5)], "loss/nll": [(100, 9.3), (200, 8.3)], "grad_norm": [(100, 2.5), (200, 2.1)]},
        {"loss": [(200, 8.2)], "loss/nll": [(200, 8.0)]},
    ),
    "mmdetection": (
        """
2021-06-01 12:00:00,000 - mmdet - INFO - Epoch [1][50/730]\tlr: 1.978e-03, eta: 1 day, 0:00:00, time: 0.5, loss_cls: 1.5, loss: 2.3
2021-06-01 12:00:30,000 - mmdet - INFO - Epoch [1][100/730]\tlr: 3.978e-03, eta: 1 day, 0:00:00, time: 0.5, loss_cls: 1.2, loss: 1.9
2021-06-01 13:00:00,000 - mmdet - INFO - Epoch(val) [1][5000]\tbbox_mAP: 0.2, bbox_mAP_50: 0.4
2021-06-01 13:01:30,000 - mmdet - INFO - Epoch [2][50/730]\tlr: 3.978e-03, eta: 1 day, 0:00:00, time: 0.5, loss_cls: 1.1, loss: 1.7
""",
        {"loss": [(50, 2.3), (100, 1.9), (780, 1.7)], "loss/cls": [(50, 1.5), (100, 1.2), (780, 1.1)]},
        {"metric/bbox_mAP": [(100, 0.2)]},
    ),
    "detectron2": (
        """
[11/16 02:58:06 d2.engine.train_loop]: Starting training from iteration 0
[11/16 02:58:20 d2.utils.events]:  eta: 10:15:10  iter: 19  total_loss: 5.5  loss_cls: 4.5  loss_box_reg: 0.25  time: 0.41  data_time: 0.01  lr: 0.0001  max_mem: 2600M
[11/16 02:58:30 d2.utils.events]:  eta: 10:15:00  iter: 39  total_loss: 4.5  loss_cls: 3.5  loss_box_reg: 0.24  time: 0.41  data_time: 0.01  lr: 0.0002  max_mem: 2600M
""",
        {"loss": [(19, 5.5), (39, 4.5)], "loss/cls": [(19, 4.5), (39, 3.5)], "loss/box_reg": [(19, 0.25), (39, 0.24)]},
        {},
    ),
    "ESPnet": (
        """
[gpu01] 2021-01-01 00:00:00,000 (trainer:678) INFO: 1epoch:train:1-100batch: loss_ctc=150.5, acc=0.1, loss=108.3, optim0_lr0=2.5e-06
[gpu01] 2021-01-01 00:01:00,000 (trainer:678) INFO: 1epoch:train:101-200batch: loss_ctc=140.5, acc=0.2, loss=98.3, optim0_lr0=5.0e-06
[gpu01] 2021-01-01 00:02:00,000 (trainer:328) INFO: 1epoch results: [train] loss_ctc=145.0, loss=103.0, [valid] loss_ctc=120.0, loss=85.0
""",
        {"loss": [(100, 108.3), (200, 98.3)], "loss/ctc": [(100, 150.5), (200, 140.5)]},
        {"loss": [(200, 103.0), (200, 85.0)]},
    ),
    "GluonCV": (
        """
[Epoch 0][Batch 99], Speed: 108.251 samples/sec, ObjLoss=415.712, BoxScaleLoss=6.285
[Epoch 0][Batch 199], Speed: 91.973 samples/sec, ObjLoss=215.614, BoxScaleLoss=4.974
[Epoch 0] Training cost: 554.457, ObjLoss=200.5, BoxScaleLoss=4.5
[Epoch 0] Validation:
tvmonitor=0.25
mAP=0.125
[Epoch 1][Batch 99], Speed: 108.251 samples/sec, ObjLoss=15.5, BoxScaleLoss=2.5
""",
        {
            "loss/Obj": [(99, 415.712), (199, 215.614), (398, 15.5)],
            "loss/BoxScale": [(99, 6.285), (199, 4.974), (398, 2.5)],
        },
        {"loss/Obj": [(199, 200.5)], "metric/mAP": [(199, 0.125)], "metric/tvmonitor": [(199, 0.25)]},
    ),
    "GluonNLP": (
        """
[Epoch 0 Batch 30/60] avg loss 0.0138693, throughput 2.46541K wps
[Epoch 0 Batch 60/60] avg loss 0.0128693, throughput 2.46541K wps
[Epoch 0] train avg loss 0.0133, dev acc 0.7959, dev avg loss 0.75, throughput 2.85245K wps
[Epoch 1 Batch 30/60] avg loss 0.0118693, throughput 2.46541K wps
Test loss 0.5, test acc 0.7580
""",
        {"loss": [(30, 0.0138693), (60, 0.0128693), (90, 0.0118693)]},
        {"loss": [(60, 0.0133), (60, 0.75), (90, 0.5)], "metric/acc": [(60, 0.7959), (90, 0.758)]},
    ),
    "evaluations that share a key with training": (
        """
[Epoch 1 Batch 10/20] loss=0.75, lr=0.0000005
[Epoch 1 Batch 20/20] loss=0.5, lr=0.0000010
Now we are doing evaluation on dev with gpu(0).
[Batch 10/33] loss=1.0
[Batch 20/33] loss=2.0
validation metrics:mcc:0.6043
[Epoch 2 Batch 10/20] loss=0.25, lr=0.0000010
""",
        {"loss": [(10, 0.75), (20, 0.5), (30, 0.25)]},
        {"loss": [(20, 1.5)], "metric/mcc": [(20, 0.6043)]},
    ),
    "torchvision": (
        """
Epoch: [0][   0/5005]\tTime  8.5 ( 8.5)\tData  7.1 ( 7.1)\tLoss 6.97e+00 (6.97e+00)\tAcc@1   0.00 (  0.00)
Epoch: [0][  10/5005]\tTime  0.5 ( 1.5)\tData  0.1 ( 0.9)\tLoss 6.90e+00 (6.95e+00)\tAcc@1   0.39 (  0.10)
Test: [  0/196]\tTime  5.5 ( 5.5)\tLoss 4.50e+00 (4.50e+00)\tAcc@1  10.00 ( 10.00)
Test: [ 10/196]\tTime  5.5 ( 5.5)\tLoss 5.50e+00 (5.00e+00)\tAcc@1  12.00 ( 11.00)
Epoch: [1][   0/5005]\tTime  8.5 ( 8.5)\tData  7.1 ( 7.1)\tLoss 4.97e+00 (4.97e+00)\tAcc@1   9.00 (  9.00)
""",
        {"loss": [(0, 6.97), (10, 6.9), (5005, 4.97)]},
        {"loss": [(10, 5.0)], "metric/Acc_1": [(10, 11.0)]},
    ),
    "PyTorch's MNIST": (
        """
Train Epoch: 1 [0/60000 (0%)]\tLoss: 2.300039
Train Epoch: 1 [640/60000 (1%)]\tLoss: 1.213470

Test set: Average loss: 0.0480, Accuracy: 9841/10000 (98%)

Train Epoch: 2 [0/60000 (0%)]\tLoss: 0.200039
""",
        {"loss": [(0, 2.300039), (640, 1.21347), (60000, 0.200039)]},
        {"loss": [(640, 0.048)], "metric/Accuracy": [(640, 0.9841)]},
    ),
    "Hugging Face": (
        """
{'loss': 2.5, 'grad_norm': 1.5, 'learning_rate': 5e-05, 'epoch': 0.1}
  5%|#         | 10/200 [00:10<03:10,  1.00it/s]{'loss': 2.25, 'grad_norm': nan, 'learning_rate': 4.9e-05, 'epoch': 0.2}
{'eval_loss': 2.1, 'eval_runtime': 3.5, 'epoch': 0.2}
""",
        {"loss": [(0, 2.5), (1, 2.25)], "grad_norm": [(0, 1.5), (1, nan)], "epoch": [(0, 0.1), (1, 0.2)]},
        {"loss": [(1, 2.1)]},
    ),
    "DeepSpeed-Chat": (
        """
[2023-04-18 01:46:52,554] [INFO] [logging.py:96:log_dist] [Rank 0] step=10, skipped=0, lr=[9.5e-06, 9.5e-06], mom=[(0.9, 0.95), (0.9, 0.95)]
epoch: 0|step: 0|ppo_ep: 1|act_loss: 0.125|cri_loss: 0.25|unsuper_loss: 0.0
average reward score: 0.5
epoch: 0|step: 1|ppo_ep: 1|act_loss: -0.125|cri_loss: 0.24|unsuper_loss: 0.0
""",
        {
            "loss/act": [(0, 0.125), (1, -0.125)],
            "loss/cri": [(0, 0.25), (1, 0.24)],
            "loss/unsuper": [(0, 0.0), (1, 0.0)],
            "lr/main": [(0, 9.5e-6)],
        },
        {},
    ),
    "Chinese": (
        "\u7b2c1\u8f6e \u8bad\u7ec3\u635f\u5931: 2.5 \u9a8c\u8bc1\u635f\u5931: 2.6\n\u7b2c2\u8f6e \u8bad\u7ec3\u635f\u5931\uff1a2.25 \u9a8c\u8bc1\u635f\u5931\uff1a2.4\n",
        {"loss": [(1, 2.5), (2, 2.25)]},
        {"loss": [(1, 2.6), (2, 2.4)]},
    ),
    "llm.c's main.log": (
        """
s:0 tel:11.0
s:0 trl:10.5 lr:0.000001 norm:15.5
s:1 trl:9.75 lr:0.000002 norm:7.25
s:2 tel:9.5
s:2 eval:0.25
""",
        {"loss": [(0, 10.5), (1, 9.75)], "grad_norm": [(0, 15.5), (1, 7.25)], "lr/main": [(0, 1e-6), (1, 2e-6)]},
        {"loss": [(0, 11.0), (2, 9.5)], "metric/accuracy": [(2, 0.25)]},
    ),
    "build-nanogpt": (
        "0 val 10.9500\n0 hella 0.2500\n0 train 10.955\n1 train 10.5\n2 train 10.25\n250 val 6.5\n",
        {"loss": [(0, 10.955), (1, 10.5), (2, 10.25)]},
        {"loss": [(0, 10.95), (250, 6.5)]},
    ),
    "losses at a step": (
        """
Start of epoch 0
Training loss (for one batch) at step 0: 9.5
Seen so far: 64 samples
Training loss (for one batch) at step 200: 2.25
Training loss (for one batch) at step 400: 1.5
""",
        {"loss": [(0, 9.5), (200, 2.25), (400, 1.5)]},
        {},
    ),
    "costs after an iteration": (
        "Cost after iteration 0: 0.693\nCost after iteration 100: 0.584\n",
        {"loss": [(0, 0.693), (100, 0.584)]},
        {},
    ),
    "Paddle": (
        """
The loss value printed in the log is the current step, and the metric is the average value of previous steps.
Epoch 1/2
step 10/20 - loss: 0.75 - acc: 0.5 - 300ms/step
step 20/20 - loss: 0.5 - acc: 0.75 - 300ms/step
Eval begin...
step 5/10 - loss: 0.5 - acc: 0.5 - 90ms/step
step 10/10 - loss: 1.0 - acc: 0.5 - 90ms/step
Eval samples: 100
Epoch 2/2
step 10/20 - loss: 0.25 - acc: 0.75 - 300ms/step
step 20/20 - loss: 0.125 - acc: 1.0 - 300ms/step
""",
        {"loss": [(10, 0.75), (20, 0.5), (30, 0.25), (40, 0.125)]},
        {"loss": [(20, 0.75)]},
    ),
    "BasicSR": (
        """
23-05-05 21:25:38 - INFO: Number of train images: 49,400, iters: 6,175
23-05-05 21:30:00 - INFO: [epoch:  0, iter:     900, lr:(2.000e-04,)] l_pix: 2.5000e-02
23-05-05 21:31:00 - INFO: [epoch:  0, iter:   1,000, lr:(2.000e-04,)] l_pix: 1.2500e-02
23-05-05 21:32:00 - INFO: [epoch:  1, iter:  12,100, lr:(1.000e-04,)] l_pix: 6.2500e-03
""",
        {
            "loss": [(900, 0.025), (1000, 0.0125), (12100, 0.00625)],
            "lr/main": [(900, 2e-4), (1000, 2e-4), (12100, 1e-4)],
        },
        {},
    ),
    "epochs of a test": (
        """
2022-10-17 22:14:46,814 - main.py[line:125] - INFO: Train Epoch 1 --- train loss : 0.5 --- train accuracy:0.75
2022-10-17 22:14:48,495 - main.py[line:147] - INFO: Test Epoch 1 --- test loss : 0.25 --- test accuracy:0.875
2022-10-17 22:16:40,878 - main.py[line:125] - INFO: Train Epoch 2 --- train loss : 0.25 --- train accuracy:0.875
2022-10-17 22:16:42,468 - main.py[line:147] - INFO: Test Epoch 2 --- test loss : 0.125 --- test accuracy:1.0
""",
        {"loss": [(1, 0.5), (2, 0.25)]},
        {"loss": [(1, 0.25), (2, 0.125)], "metric/accuracy": [(1, 0.875), (2, 1.0)]},
    ),
    "steps within an iteration": (
        "iteration:1 step:100/200, NER loss: 8.5\niteration:1 step:200/200, NER loss: 4.5\niteration:2 step:100/200, NER loss: 2.5\n",
        {"loss": [(100, 8.5), (200, 4.5), (300, 2.5)]},
        {},
    ),
    "DGCNN": (
        "Train 0, loss: 2.75, train acc: 0.25\nTest 0, loss: 2.5, test acc: 0.5\nTrain 1, loss: 2.25, train acc: 0.5\nTest 1, loss: 2.0, test acc: 0.75\n",
        {"loss": [(0, 2.75), (1, 2.25)]},
        {"loss": [(0, 2.5), (1, 2.0)], "metric/acc": [(0, 0.5), (1, 0.75)]},
    ),
    "loguru": (
        """
2021-11-11 00:01:30.834 | INFO     | __main__:train:35 - loss: 2.5
2021-11-11 00:01:31.834 | INFO     | __main__:train:35 - loss: 2.25
2021-11-11 00:01:32.834 | INFO     | __main__:<module>:113 - done
""",
        {"loss": [(0, 2.5), (1, 2.25)]},
        {},
    ),
    "Keras' checkpoints": (
        """
Epoch 1/2
10/10 - 1s - loss: 0.75 - val_acc: 0.5 - val_loss: 0.875
Epoch 00001: val_acc improved from -inf to 0.50000, saving model to best.hdf5
Epoch 2/2
10/10 - 1s - loss: 0.5 - val_acc: 0.25 - val_loss: 0.625
Epoch 00002: val_acc did not improve from 0.50000
""",
        {"loss": [(1, 0.75), (2, 0.5)]},
        {"loss": [(1, 0.875), (2, 0.625)], "metric/acc": [(1, 0.5), (2, 0.25)]},
    ),
    "nothing but a loss": ("loss: 2.5\nloss: 2.25\nloss: nan\n", {"loss": [(0, 2.5), (1, 2.25), (2, nan)]}, {}),
}


def written(run, table, channel):
    """Steps and values of a channel; NaN where NaN was printed."""
    rows = run.table(table)
    codes = rows.codes(channel)
    values = zip(rows.step.tolist(), rows[channel].tolist(), codes.tolist(), strict=True)
    return [(step, value) for step, value, code in values if code or not math.isnan(value)]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_read_with_its_steps_and_components(tmp_path, family):
    """Values to the last printed digit; a NaN stays one; what was evaluated is no training."""
    text, train, evaluated = FAMILIES[family]
    path = tmp_path / "train.log"
    path.write_text(text, encoding="utf-8")
    run = read(path)
    assert run.format == "console output"
    for table, expected in (("train", train), ("eval", evaluated)):
        for channel, values in expected.items():
            assert repr(written(run, table, channel)) == repr([(s, float(v)) for s, v in values]), (table, channel)
    losses = {name for name in run.train.channels if name == "loss" or name.startswith("loss/")}
    assert losses == {name for name in train if name == "loss" or name.startswith("loss/")}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings_and_line_ends(tmp_path, encoding, newline):
    """PowerShell writes UTF-16 with a mark, Windows CRLF."""
    path = tmp_path / "train.log"
    path.write_bytes(f"step 1 loss 2.5{newline}step 2 loss 1.5{newline}step 3 loss 1.25".encode(encoding))
    assert read(path).train["loss"].tolist() == [2.5, 1.5, 1.25]


CONFIG = '{\n  "epochs": 3,\n  "lr": 0.1,\n  "loss_weight": 2.0\n}\n'
SOURCE = """import torch
class Settings:
    num_iterations : int = 5100 # number of iterations to run
    val_loss_every : int = 125 # every how many steps to evaluate val loss? 0 for only at the end
for step in range(10):
    print(f"step:{step} loss:{loss:.4f}")
    if step % 10 == 0: loss = loss + 1
"""


@pytest.mark.parametrize(
    "before", [CONFIG, SOURCE, "Loading data, please wait\nThis takes a while, really\n", "1 2\nhello\n"]
)
def test_what_stands_before_the_log(tmp_path, before):
    """A config in JSON, the training's own source, prose with commas: none of them makes it another format."""
    path = tmp_path / "train.log"
    path.write_text(before + "".join(f"step {step} loss {1 / step}\n" for step in range(1, 31)))
    run = read(path)
    assert run.format == "console output"
    assert written(run, "train", "loss") == [(step, 1 / step) for step in range(1, 31)]
    assert run.components() == []
    assert not [name for name in run.eval.channels if name.startswith("loss")]


NO_MEASUREMENT = [
    "  STEPS: (60000, 80000)",
    "    (dropout_layer): Dropout(p = 0.1, axes=())",
    "cmd = deepspeed main.py --learning_rate 9.65e-6 --num_train_epochs 16",
    "loss = F.cross_entropy(logits, targets)  # step 3",
    "[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768",
    "wandb:   train/loss 0.5",
    "def loss(step=3):",
    "step_avg:nanms",
]


@pytest.mark.parametrize("line", NO_MEASUREMENT)
def test_lines_that_are_no_measurement(tmp_path, line):
    """Settings, printed models, source code and summaries add no row and no component."""
    path = tmp_path / "train.log"
    path.write_text(f"{line}\nstep 1 loss 2.5\n{line}\nstep 2 loss 1.5\n{line}\n")
    run = read(path)
    assert run.train.step.tolist() == [1, 2]
    assert run.train["loss"].tolist() == [2.5, 1.5]
    assert run.eval.size == 0
    assert not [name for name in run.train.channels if name.startswith("loss/")]


def test_a_rounded_zero_is_not_known_to_be_zero(tmp_path):
    """0.00 is less than 0.005, and 0.0 is what Python prints of a zero."""
    path = tmp_path / "train.log"
    path.write_text("step 1 loss 0.5 lr 0.00\nstep 2 loss 0.00 lr 0.01\nstep 3 loss 0.0 lr 0.01\n")
    run = read(path)
    assert written(run, "train", "loss") == [(1, 0.5), (3, 0.0)]
    assert written(run, "train", "lr/main") == [(2, 0.01), (3, 0.01)]
    assert sum("too few digits" in note for note in run.notes) == 2


TRACE = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n    step()\n'
CHAIN = "During handling of the above exception, another exception occurred:"
ENDS = {
    f"{TRACE}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n": ("failed", "OutOfMemoryError"),
    f"[rank0]: {TRACE.replace(chr(10), chr(10) + '[rank0]: ')}ValueError: bad\n": ("failed", "ValueError"),
    f"{TRACE}KeyboardInterrupt\n": ("stopped", "KeyboardInterrupt"),
    f"{TRACE}torch.distributed.elastic.multiprocessing.api.SignalException: Process 7 got signal: 15\n": (
        "stopped",
        "SIGTERM",
    ),
    "slurmstepd: error: *** JOB 1 ON n CANCELLED AT 2024-01-01T00:00:00 DUE TO TIME LIMIT ***\n": (
        "stopped",
        "SIGTERM: time limit",
    ),
    "slurmstepd-n1: error: *** JOB 1 ON n1 CANCELLED AT 2024-01-01T00:00:00 ***\n": ("stopped", "SIGTERM: cancelled"),
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=1.batch.\n": ("failed", "OutOfMemoryKill"),
    "Killed\n": ("failed", "Killed"),
    "Segmentation fault (core dumped)\n": ("failed", "SegmentationFault"),
    f"{TRACE}ValueError: caught\nstep 3 loss 1.0\n": ("finished", None),
    f"  3it [00:01]--- Logging error ---\n{TRACE}TypeError: not all arguments converted\nCall stack:\n": (
        "finished",
        None,
    ),
    f"Exception ignored in: <function Pool.__del__>\n{TRACE}KeyError: 1\n\n{CHAIN}\n\n{TRACE}OSError: 2\n": (
        "finished",
        None,
    ),
    f"--- Logging error ---\n{TRACE}TypeError: bad\nMessage: 'x'\n{TRACE}ValueError: worse\n": ("failed", "ValueError"),
    f'{TRACE}KeyError: 1\n[06/May/2024 16:11:33] "GET /loss_curve HTTP/1.1" 200 52\n': ("finished", None),
    f'{TRACE}KeyError: 1\nhttps://api.host:443 "POST /files HTTP/1.1" 200 None\n': ("failed", "KeyError"),
    "": ("finished", None),
}


@pytest.mark.parametrize("end", ENDS)
def test_last_words(tmp_path, end):
    """A traceback after which steps came was survived."""
    path = tmp_path / "train.log"
    path.write_text(f"step 1 loss 2.5\nstep 2 loss 1.5\n{end}")
    run = read(path)
    status, reason = ENDS[end]
    assert run.status(now=run.touched + 1e6) == status
    assert (run.end or {}).get("reason") == reason


def test_a_run_that_never_started_is_a_run(tmp_path):
    """A traceback alone is worth a diagnosis."""
    path = tmp_path / "train.log"
    path.write_text(f"{TRACE}ModuleNotFoundError: No module named 'apex'\n")
    run = read(path)
    assert (run.train.size, run.status()) == (0, "failed")
    assert run.end["exception"]["message"] == "No module named 'apex'"


def log(epochs, batches=4, last=None):
    lines = [
        f"[Epoch {e} Batch {b}/{batches}] loss {1 / (e * batches + b):.6f}"
        for e in epochs
        for b in range(1, batches + 1)
    ]
    return "\n".join(lines[:last]) + "\n"


def test_several_trainings_in_one_file_are_several_runs(tmp_path):
    """One that begins anew in the middle was appended."""
    path = tmp_path / "train.log"
    path.write_text(log(range(3), last=6) + log(range(3)))
    runs = read_all(path)
    assert [(run.nth, run.train.size, run.first_step, run.last_step) for run in runs] == [(1, 6, 1, 6), (2, 12, 1, 12)]


def test_folds_are_runs_and_no_restart(tmp_path):
    """Trainings that all go to the same end follow each other by plan."""
    path = tmp_path / "train.log"
    path.write_text(log(range(3)) * 4)
    assert [run.nth for run in read_all(path)] == [1, 1, 1, 1]


def test_a_step_back_is_a_resume(tmp_path):
    """The rows after the checkpoint are superseded."""
    path = tmp_path / "train.log"
    steps = [*range(10, 110, 10), *range(60, 160, 10)]
    path.write_text("".join(f"step {step} loss {step / 1000}\n" for step in steps))
    [run] = read_all(path)
    assert run.header.resumed_from == 50
    assert run.train.step[run.train.live].tolist() == list(range(10, 160, 10))


def test_two_writers_in_one_file_are_no_endless_resumes(tmp_path):
    """A counter that goes back at every other line is left as it stands, for step-reset to tell."""
    path = tmp_path / "train.log"
    path.write_text("".join(f"step {step + back} loss 0.5\n" for step in range(100, 400, 10) for back in (0, -45)))
    *others, run = read_all(path)
    assert len(others) < 5
    assert len(run.headers) < 25
    assert (np.diff(run.train.step[run.train.live]) < 0).any()


def test_settings_and_plan_belong_to_the_header(tmp_path):
    """What argparse prints is the config; a counter's end is the plan."""
    path = tmp_path / "train.log"
    path.write_text("Namespace(lr=0.1, name='x y', amp=True, seed=3)\nstep 1/500 loss 2.5\nstep 2/500 loss 2.0\n")
    header = read(path).header
    assert (header.total_steps, header.config) == (500, {"lr": 0.1, "name": "x y", "amp": True, "seed": 3})


WRAPPED = """INFO 2024-01-01 12:00:00 SFTConfig(output_dir='out (1',
          eval_steps=700,
          learning_rate=5e-05,
          data=DataConfig(split='train',
                          size=500),
          resume=None)
"""


def test_settings_that_are_printed_over_many_lines_are_no_measurement(tmp_path):
    """What they name has a learning rate and steps; after the last bracket, or at the margin, the log goes on."""
    assert of_text(tmp_path, f"{WRAPPED}  step 1 loss 2.5\n  step 2 loss 1.5\n")[0].train.step.tolist() == [1, 2]
    torn = WRAPPED.partition("          resume")[0]
    assert of_text(tmp_path, f"{torn}step 1 loss 2.5\nstep 2 loss 1.5\n")[0].train.step.tolist() == [1, 2]


SERVED = """[06/May/2024 16:11:33] "GET /test/step_7_loss.html HTTP/1.0" 200 5220
[06/May/2024 16:11:36] "GET /train/loss HTTP/1.1" 200 2226
"""


@pytest.mark.parametrize(
    "text",
    [
        "We trained for 3 epochs and it took 4 hours.\nSee version 1.2.3 of 2024-01-01.\n",
        WRAPPED,
        f"{SERVED}{TRACE}KeyError: 1\n{SERVED}",
    ],
)
def test_text_without_a_measurement_is_refused(tmp_path, text):
    """A README, settings alone, or a server's log is no log of a training."""
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(ReadError, match="text of another format"):
        read(path)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("12:00:01.5 loss=1e-3", {"loss": 0.001}),
        ("train.py:123 loss: .5", {"loss": 0.5}),
        ("version 1.2.3, loss -inf", {"loss": -math.inf}),
        ("eta: 1:02:03 loss 1,234.5", {"loss": 1234.5}),
        ("loss=0x7f", {}),
        ("Starting buffering for 0a1b2c3d-119f-45a3-81ce-9cd3ab42530e", {}),
        ("iter: 13,400, loss 0.5", {"iter": 13400.0, "loss": 0.5}),
        ("lr: (1.5e-04,) loss 0.5", {"lr": 1.5e-4, "loss": 0.5}),
        ("score (higher is better) : 2", {"score": 2.0}),
        ("2024-05-05 12:00:01,123 INFO:Epoch 3: loss=0.5", {"Epoch": 3.0, "loss": 0.5}),
        ("INFO:app.train:loss=0.5", {"loss": 0.5}),
    ],
)
def test_what_looks_like_a_number_and_is_none(line, values):
    """Clock times, versions, addresses, places in the source."""
    assert scan(line).values == values


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["a" * 10**6, "(" * 10**5, "a:1 " * 10**5, "\x1b]" * 10**5, "[1/2" * 10**5, "x=" * 10**5]
)
def test_hostile_lines_are_no_hang(tmp_path, text):
    """No pattern goes back over what it has seen."""
    path = tmp_path / "train.log"
    path.write_text(f"step 1 loss 2.5\n{text}\nstep 2 loss 1.5\n")
    assert read(path).train["loss"].tolist() == [2.5, 1.5]


def test_last_words_of_a_file_that_nobody_writes_any_more(tmp_path):
    """Whoever only follows it learns of the end too."""
    path = tmp_path / "train.log"
    path.write_text(f"step 1 loss 2.5\n{TRACE}ValueError: bad")
    source = open_run(path)
    source.poll()
    assert source.runs[-1].end is None
    os.utime(path, (1e9, 1e9))
    source.poll()
    assert source.runs[-1].status() == "failed"
    assert source.runs[-1].end["exception"]["message"] == "bad"


def test_a_loss_at_the_end_takes_no_step_away(tmp_path):
    """DeepSpeed prints rates and moments at each step; the one mean of the losses is no reason to forget them."""
    path = tmp_path / "training.log"
    steps = "".join(
        f"[Rank 0] step={step}, skipped=1, lr=[{step}e-06], mom=[(0.9, 0.95)]\n" for step in range(10, 1000, 10)
    )
    path.write_text(f"{steps}Epoch 1/1 with loss 0.5754789632299672\n")
    run = read(path)
    assert run.train.step.tolist() == list(range(10, 1000, 10))
    assert np.allclose(run.train["lr/main"], run.train.step * 1e-6)
    assert run.eval["loss"].tolist() == [0.5754789632299672]


def test_a_line_below_a_block_begins_no_row(tmp_path):
    """OLMo's block of step and epoch, and what the launcher says of its own."""
    path = tmp_path / "train.log"
    block = "INFO [step={0}/100,epoch=0]\n    train/CrossEntropyLoss=4.5\n    optim/total_grad_norm=0.5\n"
    path.write_text("".join(map(block.format, (10, 20))) + "Received 15 death signal, shutting down workers\n")
    assert read(path).train.step.tolist() == [10, 20]


def test_of_chained_exceptions_the_last_one_counts(tmp_path):
    """Python prints first what was caught."""
    path = tmp_path / "train.log"
    first = 'Traceback (most recent call last):\n  File "q.py", line 1, in get\n_queue.Empty\n'
    second = (
        'Traceback (most recent call last):\n  File "d.py", line 2, in fetch\nRuntimeError: DataLoader worker exited\n'
    )
    launcher = 'Traceback (most recent call last):\n  File "run.py", line 3, in main\nChildFailedError: train.py\n'
    for link in (
        CHAIN,
        "The above exception was the direct cause of the following exception:",
    ):
        path.write_text(f"step 1: loss 2.0\n{first}\n{link}\n\n{second}{launcher}")
        end = read(path).end
        assert (end["status"], end["reason"]) == ("failed", "RuntimeError")


def test_where_the_last_of_chained_exceptions_is_torn_the_first_one_counts(tmp_path):
    """Eight ranks that write over each other."""
    path = tmp_path / "train.log"
    full = 'Traceback (most recent call last):\n  File "s.py", line 1, in save\nRuntimeError: file write failed\n'
    torn = 'Traceback (most recent call last):\n  File "/home/OLMW1226 16:05:47 8985 api.py:908] Sending process 9205\n'
    torn += "W1226 16:05:47 8985 api.py:908] closing signal SIGTERM\n"
    path.write_text(f"step 1: loss 2.0\n{full}\n{CHAIN}\n\n{torn}")
    assert read(path).end["reason"] == "RuntimeError"


def test_a_table_rounds_its_steps(tmp_path):
    """From 10,000 on a logger of three digits shows many steps alike: each is one stride after the last."""
    row = "-----------\n| step | {} |\n| loss | {} |\n-----------\n"
    steps = range(9970, 10130, 10)
    path = tmp_path / "log.txt"
    path.write_text("".join(row.format(f"{step:<8.3g}" if step > 9999 else step, 1 / step) for step in steps))
    assert read(path).train.step.tolist() == list(steps)


def of_text(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "train.log"
    path.write_bytes(text.encode(encoding))
    return read_all(path)


def test_each_training_of_a_file_has_its_own_plan_and_length_of_an_epoch(tmp_path):
    """The second has other data and more epochs; within the third the batches become larger."""
    first = "".join(f"Epoch: [{e}/2][{b}/40] Loss {9 - e}.5\n" for e in range(2) for b in range(0, 40, 10))
    second = "".join(f"Epoch: [{e}/4][{b}/20] Loss {9 - e}.5\n" for e in range(4) for b in range(0, 20, 10))
    runs = of_text(tmp_path, first + second)
    assert [run.train.step.tolist() for run in runs] == [list(range(0, 80, 10)), list(range(0, 80, 10))]
    third = "".join(f"Epoch: [{e}][{b}/20] Loss {4 - e}.5\n" for e in (2, 3) for b in range(0, 20, 10))
    begun = "".join(f"Epoch: [{e}][{b}/40] Loss {9 - e}.5\n" for e in range(2) for b in range(0, 40, 10))
    assert of_text(tmp_path, begun + third)[0].train.step.tolist() == list(range(0, 120, 10))


def test_a_second_plan_is_that_of_the_second_training(tmp_path):
    """A run of 2 epochs, then one of 5."""
    plans = [(2, 2), (5, 5)]
    runs = of_text(
        tmp_path, "".join(f"Epoch {e}/{n} | loss={9 - e}.5\n" for n, ends in plans for e in range(1, ends + 1))
    )
    assert [run.header.total_steps for run in runs] == [2, 5]


def test_an_evaluation_that_tells_its_figure_alone(tmp_path):
    """It belongs to the step before it; before any step it is a setting."""
    lines = "".join(
        f"Epoch {e} | batch {b}/3 | loss: {5 - e}.5\n" + ("Validation accuracy: 0.5\n" if b == 3 else "")
        for e in range(1, 4)
        for b in range(1, 4)
    )
    run = of_text(tmp_path, "Validation score: 3\n" + lines)[0]
    assert run.eval["metric/accuracy"].tolist() == [0.5, 0.5, 0.5]


def test_a_bar_above_which_the_cursor_goes(tmp_path):
    """What stands behind ``ESC [ A`` is on a line of its own."""
    line = "Validation: |     | 0/? [00:00<?, ?it/s]\x1b[AEpoch {0}: v_loss 2.5 loss 1.5 v_kl 0.5 kl 0.25\n"
    run = of_text(tmp_path, "".join(line.format(e) for e in range(3)))[0]
    assert run.train["loss"].tolist() == [1.5, 1.5, 1.5]
    assert run.eval["loss"].tolist() == [2.5, 2.5, 2.5]


def test_an_evaluation_whose_epoch_is_glued_to_its_number(tmp_path):
    """``TEST in epoch1, loss = 2.0`` among ``TRAIN in epoch 1 , step 0, loss = 2.5``."""
    epoch = "TRAIN in epoch {0} , step 0, loss = 2.5\nTRAIN in epoch {0} , step 50, loss = 1.5\nTEST in epoch{0}, loss = 2.0\n"
    run = of_text(tmp_path, "".join(epoch.format(e) for e in range(3)))[0]
    assert run.train["loss"].tolist() == [2.5, 1.5] * 3
    assert run.eval["loss"].tolist() == [2.0] * 3
    assert Chunk("eval", run.eval, 0, 3).text(0, "split") == "test"


@pytest.mark.parametrize("hole", [7, 11_000, 3 << 20])
def test_a_hole_before_the_first_line(tmp_path, hole):
    """A log that was emptied while its writer went on begins with NULs."""
    path = tmp_path / "train.log"
    path.write_bytes(b"\0" * hole + b"".join(b"step %d loss %.2f\n" % (step, 9 - step) for step in range(3, 7)))
    run = read(path)
    assert (run.train.step.tolist(), run.train["loss"].tolist()) == ([3, 4, 5, 6], [6.0, 5.0, 4.0, 3.0])
    assert [note for note in run.notes if f"{hole:,} empty bytes" in note]


def test_chinese_of_windows(tmp_path):
    """The same line in either encoding."""
    text = "".join(f"\u5f53\u524depoch:{e}/5 | \u5f53\u524d\u635f\u5931\u503c\uff1a{5 - e}.5\n" for e in range(3))
    for encoding in ("utf-8", "gb18030"):
        assert of_text(tmp_path, text, encoding)[0].train["loss"].tolist() == [5.5, 4.5, 3.5]


def test_a_torn_character_spoils_no_other_line(tmp_path):
    """A bar that lost a byte is no Chinese of Windows; read whole and line by line, the log is the same."""
    bars = [f"Epoch {e}/20 |{chr(0x2588) * (e // 2 + 1)}| loss={20 - e}.5|acc=0.5\n".encode() for e in range(1, 21)]
    bars[9] = bars[9].replace(b"\xe2\x96\x88", b"\xe2\x96", 1)
    path = tmp_path / "train.log"
    path.write_bytes(b"".join(bars[:4]))
    source = open_run(path)
    for bar in (b"", *bars[4:]):
        with path.open("ab") as file:
            file.write(bar)
        source.poll()
    source.close()
    losses = [20 - e + 0.5 for e in range(1, 21)]
    assert read_all(path)[0].train["loss"].tolist() == source.runs[0].train["loss"].tolist() == losses


def test_a_name_that_says_training_ends_the_section_of_an_evaluation(tmp_path):
    """Nothing else tells where the evaluation ends."""
    lines = "".join(f"Training loss: 0.{9 - e}\n\nModel evaluation.\n\nModel error: 0.{8 - e}\n" for e in range(5))
    [run] = of_text(tmp_path, lines)
    assert written(run, "train", "loss") == list(enumerate([0.9, 0.8, 0.7, 0.6, 0.5]))
    assert written(run, "eval", "metric/Model_error") == list(enumerate([0.8, 0.7, 0.6, 0.5, 0.4]))


def test_batches_on_lines_of_their_own_are_of_the_epoch_above(tmp_path):
    """They begin anew with each epoch, and the values stand below them."""
    lines = "".join(
        f"Epoch {e}/30\nLearning rate: 1e-0{6 - e}\n"
        + "".join(f"  Batch {b}/40\n    Loss: {e + b / 100}\n    Grad norm: 1.5\n" for b in (1, 21, 40))
        + f"Epoch {e} - Train loss: {e}.5, val loss: {e}.25\n\n"
        for e in (1, 2, 3)
    )
    [run] = of_text(tmp_path, lines)
    assert run.train.step.tolist() == [1, 21, 40, 41, 61, 80, 81, 101, 120]
    assert written(run, "train", "lr/main") == [(1, 1e-5), (41, 1e-4), (81, 1e-3)]
    assert run.header.total_steps == 1200


def test_the_summary_of_an_epoch(tmp_path):
    """``Train | Epoch 1 | 20/40 |`` counts batches; ``Valid Summary`` is of the validation."""
    lines = "".join(
        "".join(f"Train | Epoch {e} | {b}/40 | 1.5 it/sec | Loss {e}.{b}\n" for b in (20, 39))
        + f"Train Summary | Epoch {e} | Loss={e}.5\nValid Summary | Epoch {e} | Loss={e}.75 | Best=1.75\n"
        for e in (1, 2, 3)
    )
    [run] = of_text(tmp_path, lines)
    assert written(run, "train", "loss") == [(20, 1.2), (39, 1.39), (60, 2.2), (79, 2.39), (100, 3.2), (119, 3.39)]
    assert written(run, "eval", "loss") == [(39, 1.5), (39, 1.75), (79, 2.5), (79, 2.75), (119, 3.5), (119, 3.75)]
    assert [Chunk("eval", run.eval, 0, 6).text(row, "split") for row in (0, 1)] == ["train", "validation"]


def test_a_second_phase_counts_epochs_of_its_own(tmp_path):
    """Fine-tuning is another training, whose losses are not those of the first."""
    lines = "".join(f"Epoch {e} | Train Loss: 1.{9 - e} | Val Loss: 2.5\n" for e in range(1, 5))
    lines += "".join(f"Fine-Tune Epoch {e} | Train Loss: 0.{9 - e} | Val Loss: 1.5\n" for e in range(1, 4))
    first, second = of_text(tmp_path, lines)
    assert first.train["loss"].tolist() == [1.8, 1.7, 1.6, 1.5]
    assert written(second, "train", "loss") == [(1, 0.8), (2, 0.7), (3, 0.6)]


def test_what_tensorflow_says_between_an_epoch_and_its_losses(tmp_path):
    """Its C++ side writes whenever a library is opened or memory is short, and means no line of the training."""
    said = "2024-05-05 10:11:1{0}.250125: W tensorflow/core/alloc.cc:7{0}9] failed to allocate 512.5M (1024 bytes)\n"
    lines = "".join(
        f"Epoch {e}/9\n{said.format(e) * (e % 3 == 1)}20/20 - 3s - loss: 0.{9 - e} - accuracy: 0.5\n"
        for e in range(1, 7)
    )
    [run] = of_text(tmp_path, lines)
    assert written(run, "train", "loss") == [(e, (9 - e) / 10) for e in range(1, 7)]
    assert run.eval.size == 0


def test_a_training_whose_epochs_begin_again_is_another(tmp_path):
    """Where nothing else counts; two processes that write by turns are an epoch apart, and one training."""
    row = "{{'loss': 0.5, 'learning_rate': 1e-3, 'epoch': {0}}}\n"
    epochs = [e / 10 for e in range(1, 31)]
    runs = of_text(tmp_path, "".join(map(row.format, epochs + epochs[:20])))
    assert [run.train.step.tolist() for run in runs] == [list(range(30)), list(range(20))]
    turns = [0.9, 1.0, 0.9, 1.1, 1.0, 1.2, 1.1]
    assert len(of_text(tmp_path, "".join(map(row.format, turns)))) == 1


def test_settings_of_ppo_are_no_evaluation():
    """``v_clip`` beside ``clip`` makes no validation loss of ``v_loss``."""
    assert "v_loss" in scan("step: 100 loss: 2 clip: 0.1 v_clip: 0.2 v_loss: 1.0").values


PRINTED = {
    "TRAIN in epoch 3 , step 50, loss = 2.5": {"epoch": 3, "step": 50, "loss": 2.5},
    "[200/5000] Train loss: 0.5, Valid loss: 0.75": {"step": 200, "Train loss": 0.5, "Valid loss": 0.75},
    "1013: 6.5, 7.5 avg loss, 0.001000 rate, 1.9 seconds, 6078 images": {"step": 1013, "loss": 7.5, "lr": 0.001},
    "Train: [3/300][10/1251]\tlr 0.5\tloss 1.5 (1.75)": {"epoch": 3, "batch": 10, "loss": 1.5},
    "Epoch 1, global step 704: 'val/acc' reached 0.25 (best 0.25), saving model to 'a.ckpt' as top 1": {
        "val/acc": 0.25
    },
}


@pytest.mark.parametrize("line", PRINTED)
def test_lines_of_more_trainers(line):
    """Darknet, Swin, Lightning's checkpoints, and some of nobody's."""
    values = {name.removeprefix("train: ").split(" in ")[-1]: value for name, value in scan(line).values.items()}
    assert {name: values.get(name) for name in PRINTED[line]} == PRINTED[line]
