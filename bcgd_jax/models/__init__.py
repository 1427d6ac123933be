"""Networks for image classification, quantized as a `Quantization` says."""

from bcgd_jax.models.factory import BATCH_NORM_EPSILON as BATCH_NORM_EPSILON
from bcgd_jax.models.factory import BATCH_NORM_MODES as BATCH_NORM_MODES
from bcgd_jax.models.factory import BATCH_NORM_MOMENTUM as BATCH_NORM_MOMENTUM
from bcgd_jax.models.factory import ImageClassifier as ImageClassifier
from bcgd_jax.models.factory import LayerFactory as LayerFactory
from bcgd_jax.models.lenet import LeNet5 as LeNet5
from bcgd_jax.models.quantization import Quantization as Quantization
from bcgd_jax.models.registry import MODEL_NAMES as MODEL_NAMES
from bcgd_jax.models.registry import create_model as create_model
from bcgd_jax.models.resnet import RESIDUAL_ALPHAS as RESIDUAL_ALPHAS
from bcgd_jax.models.resnet import BasicBlock as BasicBlock
from bcgd_jax.models.resnet import ResNet as ResNet
from bcgd_jax.models.resnet import cifar_resnet as cifar_resnet
from bcgd_jax.models.resnet import imagenet_resnet as imagenet_resnet
from bcgd_jax.models.vgg import VGG11 as VGG11
