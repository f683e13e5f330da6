"""Real network definitions of other packages, the images they take, and three layers each: an early one, one in the
middle, a late one.

The layers are blocks, pools, Linear layers, and convolutions with neither batch norm nor ReLU after them, whose names
mean what they give. Weights are never downloaded.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from torch import nn

from zfkernels.testing.torchvision import torchvision


class Network(NamedTuple):
    package: str
    name: str
    size: int
    layers: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.package}/{self.name}"

    def missing(self) -> str:
        """The package that is not installed, or nothing."""
        needed = ("torchvision", self.package) if self.package != "efficientnet_lite_pytorch" else (self.package,)
        return next((package for package in needed if find_spec(package) is None), "")

    def make(self) -> nn.Module:
        torchvision()  # before those that import it
        return MAKERS[self.package](self.name)


def of_torchvision(name: str) -> nn.Module:
    models, settings = import_module("torchvision.models"), {"weights": None}
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": False}
    if name in SEGMENTATION:
        settings |= {"weights_backbone": None, "num_classes": 5}
    return models.get_model(name, **settings)


def of_segmentation_models(name: str) -> nn.Module:
    architecture, encoder = name.split(" of ")
    return getattr(import_module("segmentation_models_pytorch"), architecture)(encoder, encoder_weights=None)


def of_facenet(name: str) -> nn.Module:
    package = import_module("facenet_pytorch")
    if name == "InceptionResnetV1":
        return package.InceptionResnetV1(pretrained=None, classify=True, num_classes=10)
    return getattr(package.models.mtcnn, name)(pretrained=False)


MAKERS = {
    "torchvision": of_torchvision,
    "timm": lambda name: import_module("timm").create_model(name, pretrained=False),
    "pytorchcv": lambda name: import_module("pytorchcv.model_provider").get_model(name, pretrained=False),
    "segmentation_models_pytorch": of_segmentation_models,
    "facenet_pytorch": of_facenet,
    "efficientnet_lite_pytorch": lambda name: import_module("efficientnet_lite_pytorch").EfficientNet.from_name(name),
}
SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")

TABLE = {
    "torchvision": """
        alexnet                         64 features.2 features.5 classifier.6
        vgg11                           64 features.5 features.15 features
        vgg11_bn                        64 features.7 features.21 features
        resnet18                        64 layer1.1 layer3.0 fc
        resnet50                        64 layer1.2 layer3.0 layer4.2
        resnext50_32x4d                 64 layer2.0 layer3.2 layer4.0
        wide_resnet50_2                 64 layer1.0 layer2.3 avgpool
        densenet121                     64 features.denseblock1 features.denseblock3.denselayer12 classifier
        googlenet                       64 inception3a inception4c inception5b
        inception_v3                    96 Mixed_5b Mixed_6b Mixed_6e
        mobilenet_v2                    64 features.3 features.9 features.17
        mobilenet_v3_small              64 features.2 features.6 features.11
        mnasnet0_5                      64 layers.8.2 layers.10.2 layers.13.0
        shufflenet_v2_x0_5              64 stage2.2 stage3.4 stage4
        squeezenet1_0                   64 features.4 features.8 features
        squeezenet1_1                   64 features.3 features.9 features
        efficientnet_b0                 64 features.2.1 features.5.0 features.7.0
        efficientnet_v2_s               64 features.2.1 features.4.3 features.6.7
        regnet_x_400mf                  64 trunk_output.block1 trunk_output.block3 fc
        regnet_y_400mf                  64 trunk_output.block2.block2-0 trunk_output.block3.block3-3 trunk_output.block4
        convnext_tiny                   64 features.1.2 features.5.2 features.7.2
        vit_b_16                       224 conv_proj heads
        maxvit_t                       224 blocks.0 blocks.2.layers.1 classifier
        fcn_resnet50                    64 backbone.layer1.2 backbone.layer3.0 classifier.4
        deeplabv3_mobilenet_v3_large    64 backbone.3 backbone.9 classifier.4
        lraspp_mobilenet_v3_large       64 backbone.3 backbone.9 classifier
    """,
    "timm": """
        resnet18d                       64 layer1.1 layer3.0 layer4.1
        resnet26t                       64 layer1.0 layer2 fc
        resnetblur50                    64 layer1.1 layer3.0 layer4.2
        legacy_seresnet18               64 layer1.1 layer3.0 layer4.1
        eca_resnet33ts                  64 stages.0.0 stages.1.2 stages.3.1
        gcresnet33ts                    64 stages.0.1 stages.1.2 stages.3.1
        skresnet18                      64 layer1.1 layer3.0 layer4.1
        res2net50_26w_4s                64 layer1.2 layer3.0 layer4.2
        resnest14d                      64 layer1.0 layer2 layer4.0
        dla34                           64 level2.tree1 level3.tree2 level5
        hrnet_w18_small                 64 layer1 stage4.0 incre_modules.2
        ese_vovnet19b_dw                64 stages.0 stages.1.blocks.0 stages.3
        cspdarknet53                    64 stages.1 stages.2 stages.4
        cs3darknet_s                    64 stages.0 stages.2 stages.3
        darknet53                       64 stages.1.blocks.1 stages.2 stages.4
        selecsls42b                     64 features.0 features.3 features.5
        ghostnet_100                    64 blocks.2.0 blocks.6.2 blocks.8.3
        repghostnet_050                 64 blocks.2.0 blocks.6.2 blocks.8.3
        mobilenetv3_small_050           64 blocks.1.0 blocks.3.0 classifier
        tf_efficientnet_lite0           64 blocks.1.1 blocks.4.0 blocks.6.0
        tf_mixnet_s                     64 blocks.1 blocks.3.1 blocks.5.2
        efficientnet_b0                 64 blocks.1.1 blocks.4.0 blocks.6.0
        mobileone_s0                    64 stages.1 stages.2.0 stages.3
        repvgg_a0                       64 stages.1.0 stages.2.4 stages.2.13
        rexnet_100                      64 features.2 features.8 features.15
        hardcorenas_a                   64 blocks.1.1 blocks.3.1 blocks.5
        lcnet_050                       64 blocks.1.0 blocks.3.1 blocks.5.1
        tinynet_e                       64 blocks.1.0 blocks.4.0 blocks.6.0
        fbnetc_100                      64 blocks.1.2 blocks.3.2 blocks.5
        nf_resnet50                     64 stages.0.1 stages.2.0 stages.3.2
        nf_regnet_b0                    64 stages.1.0 stages.2.3 stages.3
        resnetv2_50                     64 stages.0 stages.2.blocks.0 stages.3.blocks.2
        resnetv2_50x1_bit               64 stages.0 stages.2.blocks.0 stages.3.blocks.2
        convnext_atto                   64 stages.0.blocks stages.2.blocks.1 stages.3.blocks
        convnextv2_atto                 64 stages.0.blocks stages.2.blocks.1 stages.3.blocks
        edgenext_xx_small               64 stages.0.blocks stages.2.blocks.1 stages.3.blocks
        inception_next_atto             64 stages.0.blocks stages.2.blocks.1 stages.3.blocks.1
        poolformer_s12                  64 stages.0.blocks stages.2.blocks.1 stages.3.blocks.1
        mobilevit_xxs                   64 stages.1.0 stages.2.1 stages.4.1
        mobilevitv2_050                 64 stages.1 stages.3.0 stages.4.1
        efficientvit_b0                 64 stages.0.blocks.1 stages.2.blocks.1 stages.3.blocks.2
        fastvit_t8                      64 stages.0.blocks.1 stages.2.blocks.0 stages.3.blocks.1
        xception41                      64 blocks.0 blocks.5 blocks.11
        inception_v4                    96 features.6 features.12 features.17
        gernet_s                        64 stages.1.0 stages.2.3 stages.4.0
        dpn48b                          64 features.conv2_1.c1x1_c features.conv4_1.c1x1_c classifier
        densenet121                     64 features.denseblock2 features.denseblock3.denselayer11 features.denseblock4
        regnetx_002                     64 s2.b1 s3 s4.b6
        regnety_002                     64 s2.b1 s3 s4.b6
        starnet_s1                      64 stages.0 stages.2.4 stages.3.2
        hgnetv2_b0                      64 stages.0 stages.2.blocks.0 stages.3
        levit_conv_128s                224 stages.0.blocks.1 stages.1.blocks.2 stages.2.blocks.3
        vit_tiny_patch16_224           224 patch_embed.proj head
    """,
    "pytorchcv": """
        resnet10                       224 features.stage1 features.stage2.unit1 features.stage4
        preresnet10                    224 features.stage1.unit1 features.stage3 features.stage4
        seresnet10                     224 features.stage1.unit1 features.stage2 features.stage4.unit1
        cbam_resnet18                  224 features.stage1.unit2 features.stage2 features.stage4.unit2
        bam_resnet18                   224 features.stage1.unit2 features.stage3.unit1 features.stage4.unit2
        mobilenet_wd4                  224 features.stage2.unit1 features.stage4.unit2 output
        mobilenetv2_wd4                224 features.stage2.unit2 features.stage4.unit3 features.stage5.unit4
        shufflenet_g3_wd4              224 features.stage1.unit3 features.stage2.unit5 features.stage3.unit4
        shufflenetv2_wd2               224 features.stage1.unit2 features.stage2.unit5 features.stage3
        menet108_8x1_g3                224 features.stage1.unit3 features.stage2.unit5 features.stage3.unit4
        squeezeresnet_v1_1             224 features.stage1.unit2 features.stage2 features.stage3.unit4
        darknet_tiny                   224 features.stage2 features.stage4.unit2 features.stage5
        nin_cifar10                     32 features.stage1.unit2 features.stage2.unit3 features
        igcv3_wd4                      224 features.stage2.unit4 features.stage4.unit5 features.stage5.unit5
        xdensenet40_2_k24_bc_cifar10    32 features.stage1.unit4 features.stage2 features.stage3.unit6
        diracnet18v2                   224 features.stage1.unit3 features.stage2 features.stage4.unit4
        peleenet                       224 features.stage1.unit3 features.stage3.unit4 features.stage4
        zfnet                          224 features.stage1 features.stage2 output
        espnetv2_wd2                   224 features.stage2.unit1 features.stage3.unit4 features.stage4.unit4
        sinet_cityscapes               128 encoder.stage1 encoder.stage2.main_branch.block3 encoder
        lednet_cityscapes               64 encoder.stage1.unit3 encoder.stage3.unit3 encoder
        hardnet39ds                    224 features.stage1.unit1 features.stage3 features.stage4.unit1
        octresnet10_ad2                224 features.init_block features.stage4 output
        resnet20_cifar10                32 features.stage1.unit2 features.stage2.unit2 features.stage3
        rir_cifar10                     32 features.init_block features.stage3.unit2 features
        simplepose_resnet18_coco        64 backbone.1.unit2 backbone.3 decoder
    """,
    "segmentation_models_pytorch": """
        Unet of resnet18                64 encoder.layer2 decoder.blocks.1 segmentation_head
        UnetPlusPlus of resnet18        64 encoder.layer3 decoder.blocks.x_0_1 segmentation_head
        FPN of mobilenet_v2             64 encoder.features.4 encoder.features.13 segmentation_head
        Linknet of resnet18             64 encoder.layer2 decoder.blocks.1 segmentation_head
        DeepLabV3Plus of resnet18       64 encoder.layer2.0 decoder.aspp segmentation_head
        PSPNet of resnet18              64 encoder.layer1 decoder.psp segmentation_head
        PAN of resnet18                128 encoder.layer2.0 decoder.fpa segmentation_head
        MAnet of resnet18               64 encoder.layer2 decoder.blocks.1 segmentation_head
    """,
    "facenet_pytorch": """
        InceptionResnetV1               96 repeat_1.1 repeat_2.0 logits
        PNet                            24 prelu1 prelu2 conv4_2
        RNet                            24 prelu1 pool2 dense5_2
        ONet                            48 prelu1 pool2 prelu4
    """,
    "efficientnet_lite_pytorch": """
        efficientnet-lite0              64 _blocks.2 _blocks.8 _blocks.14
    """,
}


def rows() -> list[Network]:
    found = []
    for package, text in TABLE.items():
        for line in text.strip().splitlines():
            name, size, layers = line.strip().partition("  ")[0], *line.strip().partition("  ")[2].strip().split(" ", 1)
            found.append(Network(package, name, int(size), tuple(layers.split())))
    return found


NETWORKS = rows()
# What every run of the tests takes, where the packages are there: one of each kind, the quick ones.
QUICK = (
    "torchvision/alexnet",
    "torchvision/resnet18",
    "torchvision/densenet121",
    "torchvision/googlenet",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "timm/regnety_002",
    "timm/convnextv2_atto",
    "timm/hrnet_w18_small",
    "pytorchcv/nin_cifar10",
    "segmentation_models_pytorch/PSPNet of resnet18",
    "facenet_pytorch/PNet",
    "efficientnet_lite_pytorch/efficientnet-lite0",
)
