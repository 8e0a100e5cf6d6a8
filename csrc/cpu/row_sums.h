// Row sums of a tangent kernel, for the ops that center it.
#pragma once

#include "term.h"

namespace ahkernels::cpu {

// out [n, o] = K 1 of a scaled term, not times its scale, as exact as centering asks for.
void row_sums(const Term& term, double* out);

}  // namespace ahkernels::cpu
