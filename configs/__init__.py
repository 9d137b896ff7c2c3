"""Configurations, named folder/file, installed as fq_ldm.configs: `--config celeba64/vae`."""
