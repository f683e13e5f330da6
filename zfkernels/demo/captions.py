"""What the sections of the gallery say: what each figure shows and what it does not."""

from dataclasses import dataclass

HEAD = """# Gallery

Every analysis once, by `zfkernels gallery`. Where no other is named, the network is a small ZFNet (96 x 96 pixels; 24,
48, 64, 64, 48 maps) trained for 12 epochs to tell ten photographs apart from crops of them. It is a stand-in for a
network that has seen a million: the figures show what each analysis looks like and how to read it, not what the paper
found. Projections are drawn around mid-grey, which is 0; their scale is given or said to be each picture's own.
"""


@dataclass(frozen=True)
class Caption:
    """The words of a section; a {name} in them is a value that the section fills in."""

    title: str
    pictures: tuple[str, ...]  # files
    shows: str
    does_not_show: str
    seen: tuple[str, ...] = ()  # what is seen on each picture, for who does not see it


CAPTIONS = {
    "training": Caption(
        "Training (section 3)",
        ("training.png",),
        "`zfkernels train --plot`: the loss of the training crops, the errors, and the rate, which falls to a tenth "
        "when the validation error has not fallen for more than 4 epochs. Validation averages 10 sub-crops; the "
        "training crops are measured with dropout on, and so look worse.",
        "How well such a network can do: the crops of a photograph share its light and camera, and the recipe's "
        "numbers (rate 0.006, weight decay 0.04, batches of 32) were chosen for this small task, not the paper's.",
        seen=("training loss, the errors of training and validation crops, and the learning rate, by epoch",),
    ),
    "filters": Caption(
        "First-layer filters with and without the clamp (Fig. 6)",
        ("filters.png",),
        "`zfkernels filters`: the filters by falling size, each network on a scale of its own; the sizes against the "
        "clamp (line) and against a tenth of the median, below which a filter counts as dead (dots); and how much of "
        "each filter's energy lies at low and at high frequencies.",
        "What the paper saw in a network of 96 filters and 70 epochs. These two ran 6 epochs, without weight decay, "
        "from the same weights of He's scale, much of which still shows. A filter of 7 x 7 pixels resolves frequencies "
        "to about a quarter of the range, and the thresholds of what counts as dead or all low are this command's own.",
        seen=(
            "two rows, filters held to the clamp and filters not held: the filters of conv1 as colour tiles, their "
            "sizes as bars, and the energy of each at low and at high frequencies as dots",
        ),
    ),
    "atlas": Caption(
        "Strongest activations, projected (Fig. 2)",
        ("atlas.jpg",),
        "`zfkernels atlas`, four maps a layer: the nine strongest activations over the photographs, cut into tiles "
        "that do not overlap, at most one a tile; left of each panel the projections (one scale a map), right the "
        "patches that caused them. Chosen are the maps whose ninth activation is strongest, each photograph's "
        "favourite in turn. The command itself draws every map, and a page on which each opens at full size.",
        "What the map as a whole responds to: nine images are its extreme, not its range. A projection is made of the "
        "image's own switches, so it shows edges that are in the image even where the map does not need them; compare "
        "with an untrained network. From conv4 on a unit sees the whole image.",
        seen=(
            "four maps of each of conv1 to conv5: deconvnet projections of the nine strongest activations beside the "
            "patches that caused them",
        ),
    ),
    "evolution": Caption(
        "Features as training goes on (Fig. 4)",
        ("evolution_conv2.jpg", "evolution_conv4.jpg"),
        "`zfkernels evolution`: a column a checkpoint; for each map the projection of its strongest activation over "
        "the tiles, with its value above and its patch below. A jump in the patch is a change of which image drives "
        "the map hardest.",
        "Sizes: each projection has a scale of its own, only the values compare. Maps were chosen by the last "
        "checkpoint, so that maps which died are not seen.",
        seen=(
            "two maps of conv2 at six epochs: the projection of the strongest activation with its value, above its "
            "patch",
            "two maps of conv4 at six epochs: the projection of the strongest activation with its value, above its "
            "patch",
        ),
    ),
    "invariance": Caption(
        "Invariance (Fig. 5)",
        ("invariance.png",),
        "`zfkernels invariance`: five whole photographs shifted, magnified and turned; the distance of the layer's "
        "features from the untouched image's, over the latter's norm; and the probability of the true class. Every "
        "curve starts at 0 at no change. Layer 1 jumps at the smallest change, layer 7 moves gradually.",
        "Invariance to content that leaves or enters: a shift brings in the mean colour at one edge, a turn at the "
        "corners, and part of each distance is that. Whole photographs were never seen in training, so P(true class) "
        "need not start at 1. The distance is relative; the command's table and the API give the raw ones.",
        seen=(
            "curves of five photographs for shifts, magnification and turns: the relative distance of the features "
            "of conv1 and of fc7, and the probability of the true class",
        ),
    ),
    "occlusion": Caption(
        "What the answer depends on (Fig. 7)",
        ("occlusion.jpg",),
        "`zfkernels occlude --images`: (a) the picture and the place where covering it costs most, (b) the summed "
        "activity of the conv5 map that responds most, (c) the probability of the true class, (d) the most probable "
        "class, (e) that map's strongest activation projected, in this picture and in the three tiles that excite it "
        "most (the paper's (c)). Each cell of (b), (c), (d) is one raw answer, at the centre of a 20-pixel square.",
        "That the dark place alone would produce the answer; and the mean-coloured square is itself something the "
        "network never saw. One picture is an anecdote, and this one was chosen among ten for the largest loss.",
        seen=(
            "a photograph with the worst place framed; maps of the activity of a conv5 map, of the probability of "
            "the true class and of the most probable class as a grey square moves; four projections of that map",
        ),
    ),
    "methods": Caption(
        "Deconvnet, guided and gradient on a trained network",
        ("methods.jpg",),
        "`zfkernels gallery --only methods`: units of {network}, with max-pooling below them, in scikit-image's "
        "photographs: of three layers the map that responds most to each, at its strongest place (the box is what it "
        "sees), projected by the three methods and shown inside the box. Above each the part of it that depends on the "
        "photograph (`image_dependence`: the same unit, its photograph turned upside down): the switches bring the "
        "image in, and so a plain deconvnet projection shows it, too.",
        "What the units stand for: the network was trained on ImageNet's classes and then to draw contours, its last "
        "convolutions most of all, and edges are what all three methods draw best. Each picture has a scale of its "
        "own. Without max-pooling the deconvnet column would be the same for every photograph (`zfkernels demo` has "
        "such a network).",
        seen=(
            "units of VGG-16: photographs with the box that each unit sees, and its deconvnet, gradient and guided "
            "projections with the part of each that depends on the photograph",
        ),
    ),
    "correspondence": Caption(
        "Correspondence (Table 1)",
        (),
        "`zfkernels correspond`: 20 faces of scikit-image's lfw_subset (25 x 25 pixels, enlarged), unseen by a small "
        "network trained to tell faces from other patches ({error:.0%} of the held-out ones wrong). A part is covered "
        "in all of them; Delta is the fraction of features whose change has a different sign in two faces, averaged "
        "over all pairs, ± the deviation over the faces. Lower than random: hiding the part means the same to the "
        "network in every face.",
        "A relation, where a part lies below random by about the deviation over the faces or less, as when this page "
        "was made: a small network and 20 coarse faces are too little. And these faces are aligned, so a part is "
        "also a place, and the random boxes differ in place. The boxes are the same for every face. A feature that is "
        "0 before and after counts as agreeing, so numbers compare within a layer and not between layers.",
    ),
    "ablation": Caption(
        "Ablation (Table 3)",
        (),
        "`zfkernels ablate`: each variant trained alike, 10 epochs of 600 crops of 64 x 64 pixels, by a network of "
        "{maps} maps; errors in percent on the training crops and on 200 held-out ones, beside the paper's on ImageNet "
        "for the rows of its own network.",
        "What the architecture is worth: one seed and 10 epochs, in which most variants have not finished learning, so "
        "that rows differ more by how far they have come than by what they can reach.",
    ),
    "probes": Caption(
        "What each layer holds (Table 7)",
        (),
        "`zfkernels probe`: linear classifiers on each layer's features of 400 crops that the network was not trained "
        "on, by the number of training crops a class, mean ± deviation over two draws; and the same on a network of "
        "random weights, which is the yardstick.",
        "A difference between layers: crops from the same few cells overlap, so that even random weights do well here, "
        "and the task is too easy. Nor transfer: the classes are those the network was trained on. Maps larger than 6 "
        "x 6 are max-pooled to that, which the paper does not say it did; chance is 10%.",
    ),
    "neighbours": Caption(
        "Nearest neighbours",
        ("neighbours.jpg",),
        "`zfkernels neighbours`: two tiles and, in the features of three layers, the six nearest of the others, with "
        "their distances and the photograph each is from. Layer 1 finds the same light in the same place, layer 7 what "
        "gets the same answer.",
        "Why they are near: the distance adds all features, and a few strong ones decide it.",
        seen=(
            "a tile of brick and one of tissue, each with its six nearest tiles in the features of conv1, conv5 and "
            "fc7, their distances and the photographs they are from",
        ),
    ),
}
