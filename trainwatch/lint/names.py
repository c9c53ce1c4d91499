"""Names that settings have in public trainers: what a slip of the pen is told by, and what arithmetic is done with."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


TRAINING_ARGUMENTS = words(
    "accelerator_config activation_checkpointing activation_checkpointing_kwargs adafactor adam_beta1 adam_beta2 "
    "adam_epsilon auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16 bf16_full_eval data_seed "
    "dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers "
    "dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers "
    "ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval "
    "do_predict do_train enable_jit_checkpoint eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start "
    "eval_steps eval_strategy eval_use_gather_object evaluation_strategy fp16 fp16_backend fp16_full_eval "
    "fp16_opt_level fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap full_determinism "
    "gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better "
    "group_by_length "
    "half_precision_backend hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token "
    "ignore_data_skip include_for_metrics include_inputs_for_metrics include_num_input_tokens_seen "
    "include_tokens_per_second jit_mode_eval label_names label_smoothing_factor learning_rate length_column_name "
    "liger_kernel_config "
    "load_best_model_at_end local_rank log_level log_level_replica log_on_each_node logging_dir logging_first_step "
    "logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm "
    "max_steps metric_for_best_model mp_parameters neftune_noise_alpha no_cuda num_train_epochs optim optim_args "
    "optim_target_modules output_dir overwrite_output_dir parallelism_config past_index per_device_eval_batch_size "
    "per_device_train_batch_size prediction_loss_only project push_to_hub ray_scope remove_unused_columns report_to "
    "resume_from_checkpoint run_name save_on_each_node save_only_model save_safetensors save_steps save_strategy "
    "save_total_limit seed skip_memory_metrics split_batches tf32 torch_compile torch_compile_backend "
    "torch_compile_mode torch_empty_cache_steps torchdynamo tpu_metrics_debug tpu_num_cores use_cache use_cpu use_ipex "
    "use_legacy_prediction_loop use_liger_kernel use_mps_device warmup_ratio warmup_steps weight_decay"
)
"""Hugging Face's TrainingArguments, of versions 4 and 5."""

COMMON = words(
    "accumulate_grad_batches accumulation architecture batch_size base_lr callbacks checkpoint checkpoint_path "
    "checkpoint_every components curriculum dataloader dataset defaults dropout embedding_dim epochs "
    "eval_batch_size evaluation global_batch_size grad_accumulation gradient_accumulation gradient_accumulation_steps "
    "gradient_clip_val gradient_clipping hidden_size hyperparameters label_smoothing learning_rate logging "
    "loss_weights lr_scheduler max_epochs max_grad_norm max_iterations max_steps micro_batch_size model momentum "
    "min_learning_rate num_classes num_epochs num_iterations num_samples num_workers optimizer per_device_batch_size "
    "pretrained precision pretraining resume_from_checkpoint schedule scheduler temperature total_steps "
    "train_batch_size "
    "trainer training validation warmup warmup_epochs warmup_iterations warmup_ratio warmup_steps weight_decay "
    "tokenizer vocabulary vocab_size weights zero_optimization"
)
"""What most trainers call their settings."""

TOTAL_STEPS = words(
    "total_steps max_steps num_training_steps training_steps max_train_steps total_training_steps num_train_steps "
    "train_steps max_iters max_iter train_iters total_iters num_iterations max_iterations total_iterations max_update "
    "total_num_steps total_timesteps"
)
"""Optimiser steps that are planned."""
EPOCHS = words("epochs num_epochs max_epochs num_train_epochs n_epochs total_epochs max_epoch nepochs")
SAMPLES = words(
    "samples num_samples n_samples train_samples num_train_samples dataset_size train_size num_examples "
    "num_train_examples samples_per_epoch train_dataset_size"
)
PER_DEVICE = words(
    "per_device_train_batch_size micro_batch_size train_micro_batch_size_per_gpu batch_size_per_gpu samples_per_gpu "
    "per_gpu_batch_size device_batch_size per_device_batch_size"
)
BATCH = frozenset(["batch_size", "train_batch_size", "global_batch_size", *PER_DEVICE])
ACCUMULATION = words(
    "gradient_accumulation_steps accumulate_grad_batches accumulation accumulation_steps grad_accum_steps "
    "gradient_accumulation grad_accumulation grad_accumulation_steps grad_accum update_freq"
)
PROCESSES = words("world_size num_processes processes nproc_per_node n_gpus num_gpus distributed_world_size")
SECTIONS = words(
    "train training trainer train_cfg runner run solver optim optimizer optimization schedule scheduler lr_scheduler "
    "training_args hparams hyperparameters hyperparams hp data dataloader dataset datamodule experiment distributed "
    "train_dataloader loader"
)
"""Mappings whose settings are those of the one training around them."""
