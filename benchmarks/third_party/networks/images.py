"""Networks for images: their classifiers, and those that give a picture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.third_party.problem import (
    OUTPUTS,
    SAMPLES,
    WORDS,
    Network,
    Problem,
    images,
    mean_over_pixels,
    words,
)

VIT = {"image_size": 32, "patch_size": 8, "num_classes": OUTPUTS, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
TIMM_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (1, 2),
}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


def timm_model(name: str, size: int = 32, **options: Any) -> Problem:
    import timm

    return Problem(timm.create_model(name, pretrained=False, num_classes=OUTPUTS, **options), images(size))


def timm_densenet() -> Problem:
    from timm.models.densenet import DenseNet

    return Problem(DenseNet(8, block_config=(2, 2, 2), num_classes=OUTPUTS), images())


def timm_mixer(block: str, **options: Any) -> Problem:
    from timm.models import mlp_mixer

    sizes = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 16, "num_classes": OUTPUTS}
    return Problem(mlp_mixer.MlpMixer(**sizes, block_layer=getattr(mlp_mixer, block), **options), images())


def in_timm(shown: str, name: str, **options: Any) -> Network:
    """A network that timm makes from its name."""
    return Network("timm", shown, partial(timm_model, name, **options), ("torchvision",))


def torchvision_model(name: str, size: int = 32, **options: Any) -> Problem:
    import torchvision

    return Problem(torchvision.models.get_model(name, weights=None, num_classes=OUTPUTS, **options), images(size))


def torchvision_swin() -> Problem:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    sizes = {"patch_size": [2, 2], "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": [4, 4]}
    blocks = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2, "num_classes": OUTPUTS}
    return Problem(SwinTransformer(**sizes, **blocks), images())


def vit_pytorch_vit() -> Problem:
    from vit_pytorch import ViT

    return Problem(ViT(**VIT, dim_head=8), images())


def vit_pytorch_cct() -> Problem:
    from vit_pytorch.cct import CCT

    sizes = {"img_size": 32, "embedding_dim": 16, "n_conv_layers": 2, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2}
    return Problem(CCT(**sizes, num_classes=OUTPUTS), images())


def vit_pytorch_cvt() -> Problem:
    from vit_pytorch.cvt import CvT

    sizes = [{f"s{i}_emb_dim": 8 * i, f"s{i}_heads": i, f"s{i}_depth": 1} for i in (1, 2, 3)]
    return Problem(CvT(num_classes=OUTPUTS, **sizes[0], **sizes[1], **sizes[2]), images())


def kornia_tiny_vit() -> Problem:
    from kornia.models.tiny_vit import TinyViT

    sizes = {"embed_dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
    return Problem(TinyViT(32, num_classes=OUTPUTS, **sizes, window_sizes=(4, 4, 2, 1)), images())


def kornia_vit() -> Problem:
    from kornia.models.vit import VisionTransformer

    return Problem(VisionTransformer(32, 8, embed_dim=16, depth=2, num_heads=2), images(), lambda x: x[:, 0, :OUTPUTS])


def efficientnet() -> Problem:
    from efficientnet_pytorch import EfficientNet

    return Problem(EfficientNet.from_name("efficientnet-b0", num_classes=OUTPUTS, width_coefficient=0.25), images())


def clip() -> Problem:
    """Images and texts side by side; the outputs are the addends of their similarity."""
    import open_clip

    vision = open_clip.CLIPVisionCfg(layers=2, width=16, head_width=8, patch_size=8, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=WORDS, width=16, heads=2, layers=2)
    model = open_clip.model.CLIP(16, vision, text)
    return Problem(model, (images(), words()), lambda found: found[2] * (found[0] * found[1])[:, :OUTPUTS])


def perceiver() -> Problem:
    from perceiver_pytorch import Perceiver

    sizes = {"num_freq_bands": 3, "max_freq": 8.0, "depth": 2, "num_latents": 8, "latent_dim": 16, "latent_heads": 2}
    heads = {"cross_dim_head": 8, "latent_dim_head": 8, "num_classes": OUTPUTS, "weight_tie_layers": True}
    return Problem(Perceiver(**sizes, **heads), images(12).permute(0, 2, 3, 1).contiguous())


def smp_model(name: str, **options: Any) -> Problem:
    import segmentation_models_pytorch as smp

    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=OUTPUTS, **options)
    return Problem(model, images(), mean_over_pixels)


def monai_unet() -> Problem:
    from monai.networks.nets import UNet

    model = UNet(2, 1, OUTPUTS, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)
    return Problem(model, images(16, channels=1), mean_over_pixels)


def monai_volumes() -> Problem:
    from monai.networks.nets import SegResNet

    model = SegResNet(3, 8, 1, OUTPUTS, blocks_down=(1, 1), blocks_up=(1,))
    return Problem(model, torch.randn(SAMPLES, 1, 8, 8, 8), mean_over_pixels)


def monai_unetr() -> Problem:
    from monai.networks.nets import UNETR

    sizes = {"feature_size": 4, "hidden_size": 16, "mlp_dim": 32, "num_heads": 2, "spatial_dims": 2}
    return Problem(UNETR(1, OUTPUTS, 32, **sizes), images(32, channels=1), mean_over_pixels)


def diffusers_unet(kind: str, **options: Any) -> Problem:
    """A network that removes noise, at a time for each sample."""
    import diffusers

    sizes = {"sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    model = getattr(diffusers, kind)(**sizes, **options)
    inputs = {"sample": images(16), "timestep": torch.arange(SAMPLES) * 100}
    if kind == "UNet2DConditionModel":
        inputs["encoder_hidden_states"] = torch.randn(SAMPLES, 4, 8)
    return Problem(model, inputs, lambda found: mean_over_pixels(found.sample))


UNET = {
    "out_channels": OUTPUTS,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CONDITIONED = {
    "in_channels": 3,
    "out_channels": OUTPUTS,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}


def in_torchvision(shown: str, make: Callable[[], Problem]) -> Network:
    return Network("torchvision", shown, make)


NETWORKS = [
    in_torchvision("ResNet18", partial(torchvision_model, "resnet18")),
    in_torchvision("MobileNetV3", partial(torchvision_model, "mobilenet_v3_small")),
    in_torchvision("ShuffleNetV2", partial(torchvision_model, "shufflenet_v2_x0_5")),
    in_torchvision("SqueezeNet", partial(torchvision_model, "squeezenet1_1")),
    in_torchvision("Swin V2", torchvision_swin),
    in_timm("ResNet", "test_resnet"),
    in_timm("NFNet", "test_nfnet"),
    in_timm("EfficientNet", "test_efficientnet"),
    in_timm("ConvNeXt V2", "test_convnext2"),
    in_timm("ViT", "test_vit", img_size=32),
    in_timm("ViT, relative positions", "test_vit_relpos", img_size=32),
    Network("timm", "MLP-Mixer", partial(timm_mixer, "MixerBlock"), ("torchvision",)),
    Network("timm", "ResMLP", partial(timm_mixer, "ResBlock", mlp_ratio=4), ("torchvision",)),
    in_timm("CaiT", "cait_xxs24_224", **TIMM_VIT),
    in_timm("XCiT", "xcit_nano_12_p8_224", **TIMM_VIT),
    in_timm("BEiT", "beit_base_patch16_224", **TIMM_VIT),
    in_timm("EVA", "eva02_tiny_patch14_224", **TIMM_VIT),
    in_timm("Swin", "swin_tiny_patch4_window7_224", **TIMM_SWIN),
    in_timm("MaxViT", "test_maxvit", size=64, img_size=64),
    in_timm("MambaOut", "test_mambaout"),
    in_timm("RepVGG", "test_byobnet"),
    Network("timm", "DenseNet", timm_densenet, ("torchvision",)),
    Network("vit-pytorch", "ViT", vit_pytorch_vit),
    Network("vit-pytorch", "CCT", vit_pytorch_cct),
    Network("vit-pytorch", "CvT", vit_pytorch_cvt),
    Network("kornia", "TinyViT", kornia_tiny_vit),
    Network("kornia", "ViT", kornia_vit),
    Network("efficientnet_pytorch", "EfficientNet", efficientnet),
    Network("open_clip_torch", "CLIP", clip, ("torchvision",)),
    Network("perceiver-pytorch", "Perceiver", perceiver),
    Network("segmentation_models_pytorch", "Unet", partial(smp_model, "Unet"), ("torchvision",)),
    Network("segmentation_models_pytorch", "FPN", partial(smp_model, "FPN"), ("torchvision",)),
    Network("monai", "UNet", monai_unet),
    Network("monai", "SegResNet of volumes", monai_volumes),
    Network("monai", "UNETR", monai_unetr),
    Network("diffusers", "UNet2D", partial(diffusers_unet, "UNet2DModel", **UNET)),
    Network("diffusers", "UNet2D with a condition", partial(diffusers_unet, "UNet2DConditionModel", **CONDITIONED)),
]
