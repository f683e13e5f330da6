"""How a signal passes what is not linear on its way down."""

# How a ReLU sends a signal g down, m being its derivative at what was its input:
METHODS = (
    "deconvnet",  # max(0, g)       Zeiler & Fergus
    "gradient",  #  m g             Simonyan et al. 2013
    "guided",  #    m max(0, g)     Springenberg et al. 2014
)
NORMS = ("identity", "gradient", "rescale")  # how a contrast norm is undone
