import yaml

from src.curriculum import DEFAULT_CURRICULUM


def main(config_path="configs/optimized_extended.yaml"):
    config = yaml.safe_load(open(config_path))
    train(config, DEFAULT_CURRICULUM)


if __name__ == "__main__":
    main()
