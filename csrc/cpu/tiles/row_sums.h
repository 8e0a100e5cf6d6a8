// Row sums of a layer's kernel, as exact as centering asks for.
#pragma once

#include "layer_factors.h"

namespace ahkernels::cpu {

// out [n, o] = K 1 of a scaled layer, with the scale undone.
//
// Centered sums of squares depend on an error of the row sums only in second order, so that for kernels over several
// outputs the precision of the tiles is enough. A near-constant kernel can be so close to constant that even such an
// error shows: it takes fp64.
void row_sums(const LayerFactors& layer, double* out);

}  // namespace ahkernels::cpu
