"""Where the code runs: Colab, Kaggle or a local machine; its device, its files, the hub."""
