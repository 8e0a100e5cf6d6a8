"""How tangent features move with the output Hessian early in training."""
