"""Datasets as random-access sources of uint8 images, and batches of them: NumPy alone, no JAX."""

from bcgd_jax.data.datasets import Dataset as Dataset
from bcgd_jax.data.datasets import DatasetInfo as DatasetInfo
from bcgd_jax.data.datasets import dataset_info as dataset_info
from bcgd_jax.data.datasets import load_dataset as load_dataset
from bcgd_jax.data.options import DATASET_NAMES as DATASET_NAMES
from bcgd_jax.data.options import DataOptions as DataOptions
from bcgd_jax.data.pipeline import Batch as Batch
from bcgd_jax.data.pipeline import BatchIterator as BatchIterator
from bcgd_jax.data.pipeline import eval_batches as eval_batches
from bcgd_jax.data.pipeline import train_batches as train_batches
from bcgd_jax.data.sources import ImageSource as ImageSource
