"""auxseg: lung and lung-nodule segmentation on chest CT with the Auxiliary U-Net."""

__version__ = "0.1.0"
