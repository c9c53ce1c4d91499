import hydra


@hydra.main(config_path="configs", config_name="cfg_pretrain", version_base=None)
def main(cfg):
    trainer = Trainer(cfg, anneal_steps=50000)
    trainer.fit()


if __name__ == "__main__":
    main()
