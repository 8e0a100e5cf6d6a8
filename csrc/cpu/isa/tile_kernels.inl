// The inner kernels, written once with the compiler's vector types. Each tile_<instruction set>.cpp includes this file
// in a namespace of its own and under its instruction set's target, so that nothing compiled here is shared with code
// that must run on older processors.

template <class T, int Bytes>
struct Vector {
  typedef T type __attribute__((vector_size(Bytes)));
  typedef T unaligned __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};

// How one step along k enters a tile, whose sums are of type T. A panel holds elements of type Packed: here one number,
// elsewhere a pair of bf16.
template <class T, int Bytes>
struct MultiplyAdd {
  using Sum = T;
  using Packed = T;
  using V = typename Vector<T, Bytes>::type;
  static constexpr int kBytes = Bytes;
  static constexpr int64_t kPerPacked = 1;

  static V load(const Packed* from) { return *reinterpret_cast<const V*>(from); }
  static V broadcast(const Packed* from) { return *from - V{}; }  // "+" would not be left out: it turns -0 to 0
  static V accumulate(V sum, V a, V b) { return sum + a * b; }
  static Packed convert(const T* values) { return values[0]; }
};

// ---- gemm

// A register tile of Rows x (Vectors vectors): tile (+)= a^T b over k packed steps, where gemm() calls this for one
// block of k at a time. Each block has a sum of its own, so that rounding does not grow with all of k.
template <class Step, int Rows, int Vectors>
void register_tile(int64_t k, const typename Step::Packed* a, const typename Step::Packed* b, bool accumulate,
                   typename Step::Sum* tile) {
  using V = typename Vector<typename Step::Sum, Step::kBytes>::type;
  constexpr int kLanes = Step::kBytes / sizeof(typename Step::Sum);
  V sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = V{};
  }
  for (int64_t step = 0; step < k; ++step) {
    decltype(Step::load(b)) columns[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) columns[v] = Step::load(b + step * kPanel + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const auto row = Step::broadcast(a + step * kPanel + r);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = Step::accumulate(sum[r][v], row, columns[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      V& out = *reinterpret_cast<V*>(tile + r * kPanel + v * kLanes);
      out = accumulate ? out + sum[r][v] : sum[r][v];
    }
  }
}

// One strip of register tiles down the rows. With fewer than Vectors vectors left at the ragged right edge, the tiles
// are narrower.
template <class Step, int Rows, int Vectors>
void strip(int64_t vectors, int64_t k, const typename Step::Packed* a, const typename Step::Packed* b, int64_t rows,
           bool accumulate, typename Step::Sum* tile) {
  if constexpr (Vectors > 1) {
    if (vectors < Vectors) {
      strip<Step, Rows, Vectors - 1>(vectors, k, a, b, rows, accumulate, tile);
      return;
    }
  }
  for (int64_t r = 0; r < rows; r += Rows) {
    register_tile<Step, Rows, Vectors>(k, a + r, b, accumulate, tile + r * kPanel);
  }
}

template <class Step, int Rows, int Vectors>
void gemm(int64_t k, const void* a, const void* b, int64_t rows, int64_t cols, bool accumulate,
          typename Step::Sum* tile) {
  using Packed = typename Step::Packed;
  constexpr int64_t kLanes = Step::kBytes / sizeof(typename Step::Sum);
  // As much of k at a time as keeps the slice of `a` in the first-level cache and that of `b` in the second.
  constexpr int64_t kBlock = 2048 / sizeof(Packed);
  const int64_t packed_k = k / Step::kPerPacked;
  if (packed_k == 0 && !accumulate) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < kPanel; ++c) tile[r * kPanel + c] = 0;
    }
  }
  for (int64_t begin = 0; begin < packed_k; begin += kBlock) {
    const int64_t count = packed_k - begin < kBlock ? packed_k - begin : kBlock;
    const Packed* a_block = static_cast<const Packed*>(a) + begin * kPanel;
    const Packed* b_block = static_cast<const Packed*>(b) + begin * kPanel;
    for (int64_t c = 0; c < cols; c += Vectors * kLanes) {
      strip<Step, Rows, Vectors>(ceil_div(cols - c, kLanes), count, a_block, b_block + c, rows, accumulate || begin > 0,
                                 tile + c);
    }
  }
}

// ---- pack

inline float to_float(uint16_t bfloat16_bits) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16_bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float to_float(Half value) { return static_cast<float>(value); }
inline float to_float(float value) { return value; }
inline double to_float(double value) { return value; }

// values = numbers [begin, begin + kCount) of a row, scaled and less their mean, and zeros past the rows and past k.
template <int64_t kCount, class Source, class T>
void read(const Strided& source, const T* mean, int64_t rows, int64_t k, int64_t row, int64_t begin, T* values) {
  const T scale = static_cast<T>(source.scale);
  const int64_t left = row < rows ? k - begin : 0, present = left < kCount ? left : kCount;
  const Source* from = static_cast<const Source*>(source.data) + row * source.row_stride + begin * source.k_stride;
  if (source.k_stride == 1 && present == kCount) {
#pragma GCC unroll 32
    for (int64_t i = 0; i < kCount; ++i) values[i] = static_cast<T>(to_float(from[i])) * scale;
  } else {
    for (int64_t i = 0; i < kCount; ++i) values[i] = 0;
    for (int64_t i = 0; i < present; ++i) values[i] = static_cast<T>(to_float(from[i * source.k_stride])) * scale;
  }
  if (mean != nullptr) {
    for (int64_t i = 0; i < present; ++i) values[i] -= mean[begin + i] * scale;
  }
}

template <class Step, class Source>
void pack_as(const Strided& source, const typename Step::Sum* mean, int64_t rows, int64_t k,
             typename Step::Packed* dst) {
  using T = typename Step::Sum;
  constexpr int64_t kChunk = 16;  // a cache line of fp32 from each row at a time, and the longest vector
  const T scale = static_cast<T>(source.scale);
  if constexpr (Step::kPerPacked == 1) {
    if (source.row_stride == 1 && mean == nullptr) {  // a transposed matrix: rows lie side by side as in the panel
      for (int64_t i = 0; i < k; ++i) {
        const Source* from = static_cast<const Source*>(source.data) + i * source.k_stride;
        for (int64_t row = 0; row < rows; ++row) dst[i * kPanel + row] = static_cast<T>(to_float(from[row])) * scale;
        for (int64_t row = rows; row < ceil_div(rows, kChunk) * kChunk; ++row) dst[i * kPanel + row] = 0;
      }
      return;
    }
  }
  const int64_t padded = ceil_div(k, Step::kPerPacked) * Step::kPerPacked;
  const int64_t padded_rows = ceil_div(rows, kChunk) * kChunk;  // a ragged panel is never read beyond
  for (int64_t begin = 0; begin < padded; begin += kChunk) {
    const int64_t count = padded - begin < kChunk ? padded - begin : kChunk;
    for (int64_t row = 0; row < padded_rows; ++row) {
      T values[kChunk];
      read<kChunk, Source>(source, mean, rows, k, row, begin, values);
      typename Step::Packed* to = dst + begin / Step::kPerPacked * kPanel + row;
      for (int64_t i = 0; i < count / Step::kPerPacked; ++i) {
        to[i * kPanel] = Step::convert(values + i * Step::kPerPacked);
      }
    }
  }
}

// Calls visit(number) with a number of the element's type.
template <class Visit>
auto with_element(Element element, const Visit& visit) {
  switch (element) {
    case Element::kFloat:
      return visit(float{});
    case Element::kHalf:
      return visit(Half{});
    case Element::kBFloat16:
      return visit(uint16_t{});
    default:
      return visit(double{});
  }
}

template <class Step>
void pack(const Strided& source, const typename Step::Sum* mean, int64_t rows, int64_t k, void* dst) {
  with_element(source.element, [&](auto number) {
    pack_as<Step, decltype(number)>(source, mean, rows, k, static_cast<typename Step::Packed*>(dst));
  });
}

// ---- epilogue

// Columns run to the next whole vector. Tiles have kPanel columns, and those past `cols` are never summed.
template <class T, int Bytes>
void hadamard(const T* p, T bias, const T* q, int64_t rows, int64_t cols, bool accumulate, T* tile) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int64_t kLanes = Bytes / sizeof(T);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r * kPanel; c < r * kPanel + cols; c += kLanes) {
      const V product = (*reinterpret_cast<const V*>(p + c) + bias) * *reinterpret_cast<const V*>(q + c);
      V& out = *reinterpret_cast<V*>(tile + c);
      out = accumulate ? out + product : product;
    }
  }
}

template <class T, int Bytes>
void hadamard_sums(const T* p, T bias, const T* q, int64_t rows, int64_t cols, T* sums) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int64_t kLanes = Bytes / sizeof(T);
  constexpr int64_t kVectors = kPanel / kLanes;
  V columns[kVectors] = {};
  const int64_t vectors = ceil_div(cols, kLanes);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = r * kPanel + v * kLanes;
      columns[v] += (*reinterpret_cast<const V*>(p + at) + bias) * *reinterpret_cast<const V*>(q + at);
    }
  }
  for (int64_t c = 0; c < cols; ++c) sums[c] = columns[c / kLanes][c % kLanes];
}

template <class T, int Bytes>
void centered_hadamard(const T* p, T p0, const T* p_row, const T* p_col, const T* q, T q0, const T* q_row,
                       const T* q_col, int64_t rows, int64_t cols, bool accumulate, T* tile) {
  using V = typename Vector<T, Bytes>::type;
  using U = typename Vector<T, Bytes>::unaligned;
  constexpr int64_t kLanes = Bytes / sizeof(T);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; c += kLanes) {
      const V p_tile = *reinterpret_cast<const V*>(p + r * kPanel + c);
      const V p_column = *reinterpret_cast<const U*>(p_col + c);
      const V q_column = *reinterpret_cast<const U*>(q_col + c);
      V sum = (p_tile + p_column + (p0 + p_row[r])) * *reinterpret_cast<const V*>(q + r * kPanel + c);
      sum += p_tile * (q_column + (q0 + q_row[r])) + p_row[r] * q_column + q_row[r] * p_column;
      V& out = *reinterpret_cast<V*>(tile + r * kPanel + c);
      out = accumulate ? out + sum : sum;
    }
  }
}

template <class T, int Bytes>
double centered_product(const T* a, const T* row_a, const T* col_a, const T* b, const T* row_b, const T* col_b,
                        int64_t rows, int64_t cols) {
  using V = typename Vector<T, Bytes>::type;
  using U = typename Vector<T, Bytes>::unaligned;
  constexpr int64_t kLanes = Bytes / sizeof(T);
  constexpr int64_t kVectors = kPanel / kLanes;
  V sums[kVectors] = {};  // a sum for each vector of columns: short chains, and a fixed order
  const int64_t whole = cols / kLanes;
  double tail = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const T* ar = a + r * kPanel;
    const T* br = b + r * kPanel;
    for (int64_t v = 0; v < whole; ++v) {
      const V x =
          *reinterpret_cast<const V*>(ar + v * kLanes) - *reinterpret_cast<const U*>(col_a + v * kLanes) - row_a[r];
      const V y =
          *reinterpret_cast<const V*>(br + v * kLanes) - *reinterpret_cast<const U*>(col_b + v * kLanes) - row_b[r];
      sums[v] += x * y;
    }
    for (int64_t c = whole * kLanes; c < cols; ++c) {
      tail += static_cast<double>(ar[c] - col_a[c] - row_a[r]) * static_cast<double>(br[c] - col_b[c] - row_b[r]);
    }
  }
  double total = tail;
  for (int64_t v = 0; v < whole; ++v) {
    for (int64_t lane = 0; lane < kLanes; ++lane) total += static_cast<double>(sums[v][lane]);
  }
  return total;
}

// to [rows] = the sum of the lanes of each vector in across [rows], of at least four lanes, for four vectors at a time;
// `across` is padded with zeros to a multiple of four vectors.
template <class T, int Bytes>
void sums_of_quarters(const typename Vector<T, Bytes>::type* across, int64_t rows, T* to) {
  using Quarter = typename Vector<T, 4 * sizeof(T)>::type;
  constexpr int64_t kQuarters = Bytes / (4 * sizeof(T));
  const auto* from = reinterpret_cast<const typename Vector<T, 4 * sizeof(T)>::unaligned*>(across);
  for (int64_t r = 0; r < rows; r += 4, from += 4 * kQuarters) {
    Quarter sums[4];
#pragma GCC unroll 4
    for (int64_t row = 0; row < 4; ++row) {
      sums[row] = from[row * kQuarters];
#pragma GCC unroll 4
      for (int64_t i = 1; i < kQuarters; ++i) sums[row] += from[row * kQuarters + i];
    }
    const Quarter first =
        __builtin_shufflevector(sums[0], sums[1], 0, 4, 1, 5) + __builtin_shufflevector(sums[0], sums[1], 2, 6, 3, 7);
    const Quarter second =
        __builtin_shufflevector(sums[2], sums[3], 0, 4, 1, 5) + __builtin_shufflevector(sums[2], sums[3], 2, 6, 3, 7);
    const Quarter total =
        __builtin_shufflevector(first, second, 0, 1, 4, 5) + __builtin_shufflevector(first, second, 2, 3, 6, 7);
    for (int64_t row = 0; row < 4 && r + row < rows; ++row) to[r + row] = total[row];
  }
}

// to [rows] = the sum of the lanes of each vector in across [rows], of any length.
template <class T, int Bytes>
void sums_of_lanes(const typename Vector<T, Bytes>::type* across, int64_t rows, T* to) {
  if constexpr (Bytes < 4 * sizeof(T)) {
    static_assert(Bytes == 2 * sizeof(T));
    for (int64_t r = 0; r < rows; ++r) to[r] = across[r][0] + across[r][1];
  } else {
    sums_of_quarters<T, Bytes>(across, rows, to);
  }
}

// Form, square and sums of rows and columns for the numbers entry(r, c), a vector of row r from column c on. The sums
// of up to Vectors vectors of columns stay in registers.
template <class T, int Bytes, int Vectors, class Entry>
FormAndSquare form_square_and_sums_of(const Entry& entry, const T* v_row, const T* v_col, int64_t rows, int64_t cols,
                                      T* row_sums, T* col_sums) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int64_t kLanes = Bytes / sizeof(T);
  if constexpr (Vectors > 1) {
    if (cols <= (Vectors - 1) * kLanes) {
      return form_square_and_sums_of<T, Bytes, Vectors - 1>(entry, v_row, v_col, rows, cols, row_sums, col_sums);
    }
  }
  V across[kPanel];
  V forms[Vectors] = {}, squares[Vectors] = {}, columns[Vectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    V sum = {};
#pragma GCC unroll 12
    for (int v = 0; v < Vectors; ++v) {
      const V numbers = entry(r, v * kLanes);
      forms[v] += numbers * v_row[r];
      squares[v] += numbers * numbers;
      columns[v] += numbers;
      sum += numbers;
    }
    across[r] = sum;
  }
  for (int64_t r = rows; r % 4 != 0; ++r) across[r] = V{};
  sums_of_lanes<T, Bytes>(across, rows, row_sums);
  FormAndSquare total{0, 0};
  for (int64_t c = 0; c < cols; ++c) {
    total.form += static_cast<double>(forms[c / kLanes][c % kLanes]) * static_cast<double>(v_col[c]);
    total.square += static_cast<double>(squares[c / kLanes][c % kLanes]);
    col_sums[c] = columns[c / kLanes][c % kLanes];
  }
  return total;
}

template <class T, int Bytes>
FormAndSquare form_square_and_sums(const T* tile, const T* v_row, const T* v_col, int64_t rows, int64_t cols,
                                   T* row_sums, T* col_sums) {
  using V = typename Vector<T, Bytes>::type;
  const auto entry = [tile](int64_t r, int64_t c) { return *reinterpret_cast<const V*>(tile + r * kPanel + c); };
  return form_square_and_sums_of<T, Bytes, kPanel * sizeof(T) / Bytes>(entry, v_row, v_col, rows, cols, row_sums,
                                                                       col_sums);
}

template <class T, int Bytes, auto Gemm>
FormAndSquare product_form_square_and_sums(const CenteredTiles<T>& of, T* tile) {
  using V = typename Vector<T, Bytes>::type;
  using U = typename Vector<T, Bytes>::unaligned;
  FormAndSquare total{0, 0};
  for (int64_t j = 0; j < of.count; ++j) {
    Gemm(of.k, of.a, static_cast<const std::byte*>(of.b) + j * of.b_bytes, of.rows, of.cols, false, tile);
    const T p0 = of.p0, q0 = of.q0[j * of.q0_step];
    const T *p_tile = of.p, *p_row = of.p_row, *p_col = of.p_col;
    const T *q_row = of.q_row + j * of.q_row_step, *q_col = of.q_col + j * of.q_col_step;
    const auto entry = [=](int64_t r, int64_t c) {
      const V p = *reinterpret_cast<const V*>(p_tile + r * kPanel + c);
      const V p_column = *reinterpret_cast<const U*>(p_col + c);
      const V q_column = *reinterpret_cast<const U*>(q_col + c);
      V sum = (p + p_column + (p0 + p_row[r])) * *reinterpret_cast<const V*>(tile + r * kPanel + c);
      sum += p * (q_column + (q0 + q_row[r])) + p_row[r] * q_column + q_row[r] * p_column;
      return sum;
    };
    T* sums = of.sums + j * of.sums_step;
    const auto [form, square] = form_square_and_sums_of<T, Bytes, kPanel * sizeof(T) / Bytes>(
        entry, of.v_row, of.v_col + j * of.v_col_step, of.rows, of.cols, sums, sums + kPanel);
    total.form += form;
    total.square += square;
  }
  return total;
}

// Adds whole vectors: past `cols` a tile holds zeros up to the next 16 columns, since its factors do.
template <class T, int Bytes>
void sums(const T* tile, int64_t rows, int64_t cols, T* row_sums, T* col_sums) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int64_t kLanes = Bytes / sizeof(T);
  constexpr int64_t kVectors = kPanel / kLanes;
  const int64_t vectors = ceil_div(cols, kLanes);
  V columns[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    V across = {};
    for (int64_t v = 0; v < vectors; ++v) {
      const V numbers = *reinterpret_cast<const V*>(tile + r * kPanel + v * kLanes);
      columns[v] += numbers;
      across += numbers;
    }
    T total = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) total += across[lane];
    row_sums[r] = total;
  }
  for (int64_t c = 0; c < cols; ++c) col_sums[c] = columns[c / kLanes][c % kLanes];
}

template <class T, int Bytes>
FormAndSquare centered_form_and_square(const T* tile, const T* row, const T* col, const T* v_row, const T* v_col,
                                       int64_t rows, int64_t cols) {
  using V = typename Vector<T, Bytes>::type;
  using U = typename Vector<T, Bytes>::unaligned;
  constexpr int64_t kLanes = Bytes / sizeof(T);
  constexpr int64_t kVectors = kPanel / kLanes;
  const int64_t vectors = ceil_div(cols, kLanes);
  V forms[kVectors] = {}, squares[kVectors] = {};  // one for each column: short chains in a fixed order
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t v = 0; v < vectors; ++v) {
      const V centered = *reinterpret_cast<const V*>(tile + r * kPanel + v * kLanes) -
                         *reinterpret_cast<const U*>(col + v * kLanes) - row[r];
      forms[v] += centered * v_row[r];
      squares[v] += centered * centered;
    }
  }
  FormAndSquare total{0, 0};
  for (int64_t c = 0; c < cols; ++c) {
    total.form += static_cast<double>(forms[c / kLanes][c % kLanes]) * static_cast<double>(v_col[c]);
    total.square += static_cast<double>(squares[c / kLanes][c % kLanes]);
  }
  return total;
}

template <class T, int Bytes, auto Gemm>
FormAndSquare product_form_and_square(const ProductTiles<T>& of, T* tile) {
  FormAndSquare total{0, 0};
  for (int64_t j = 0; j < of.count; ++j) {
    Gemm(of.k, of.a, static_cast<const std::byte*>(of.b) + j * of.b_bytes, of.rows, of.cols, false, tile);
    hadamard<T, Bytes>(of.p, of.bias, tile, of.rows, of.cols, false, tile);
    const auto [form, square] = centered_form_and_square<T, Bytes>(tile, of.row, of.col + j * of.col_step, of.v_row,
                                                                   of.v_col + j * of.col_step, of.rows, of.cols);
    total.form += form;
    total.square += square;
  }
  return total;
}

// ---- rows

// Calls visit(x) with a pointer to the numbers of the row in their own type.
template <class Visit>
auto with_row(const Strided& row, const Visit& visit) {
  return with_element(row.element, [&](auto number) { return visit(static_cast<const decltype(number)*>(row.data)); });
}

template <class Bits>
Bits largest_bits(const Strided& rows, int64_t count, int64_t k) {
  const Bits magnitude_bits = static_cast<Bits>(~Bits{0}) >> 1;  // integers order magnitudes as numbers do
  Bits largest = 0;
  for (int64_t row = 0; row < count; ++row) {
    const Bits* from = static_cast<const Bits*>(rows.data) + row * rows.row_stride;
    if (rows.k_stride == 1) {
      for (int64_t i = 0; i < k; ++i) {
        const Bits bits = from[i] & magnitude_bits;
        largest = bits > largest ? bits : largest;
      }
    } else {
      for (int64_t i = 0; i < k; ++i) {
        const Bits bits = from[i * rows.k_stride] & magnitude_bits;
        largest = bits > largest ? bits : largest;
      }
    }
  }
  return largest;
}

inline double largest(const Strided& rows, int64_t count, int64_t k) {
  if (rows.element == Element::kDouble) return __builtin_bit_cast(double, largest_bits<uint64_t>(rows, count, k));
  if (rows.element == Element::kFloat) return __builtin_bit_cast(float, largest_bits<uint32_t>(rows, count, k));
  const uint16_t bits = largest_bits<uint16_t>(rows, count, k);
  return rows.element == Element::kHalf ? to_float(__builtin_bit_cast(Half, bits)) : to_float(bits);
}

template <class T>
void axpy(T alpha, const Strided& x, int64_t k, T* y) {
  alpha *= static_cast<T>(x.scale);
  with_row(x, [&](const auto* from) {
    if (x.k_stride == 1) {
      for (int64_t i = 0; i < k; ++i) y[i] += alpha * static_cast<T>(to_float(from[i]));
    } else {
      for (int64_t i = 0; i < k; ++i) y[i] += alpha * static_cast<T>(to_float(from[i * x.k_stride]));
    }
  });
}

template <class T>
T dot(const Strided& x, int64_t k, const T* y) {
  constexpr int64_t kLanes = 16;
  T sums[kLanes] = {};
  with_row(x, [&](const auto* from) {
    int64_t begin = 0;
    if (x.k_stride == 1) {
      for (; begin + kLanes <= k; begin += kLanes) {
#pragma GCC unroll 16
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          sums[lane] += static_cast<T>(to_float(from[begin + lane])) * y[begin + lane];
        }
      }
    }
    for (int64_t i = begin; i < k; ++i) sums[0] += static_cast<T>(to_float(from[i * x.k_stride])) * y[i];
  });
#pragma GCC unroll 4
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {  // in steps that do not wait for each other
#pragma GCC unroll 8
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0] * static_cast<T>(x.scale);
}

// A vector of the numbers from `from` on.
template <class T, int Bytes, class Source>
typename Vector<T, Bytes>::type load_numbers(const Source* from) {
  if constexpr (std::is_same_v<Source, T>) {
    return *reinterpret_cast<const typename Vector<T, Bytes>::unaligned*>(from);
  } else if constexpr (std::is_same_v<Source, float>) {
    using Floats = typename Vector<float, Bytes / 2>::unaligned;
    return __builtin_convertvector(*reinterpret_cast<const Floats*>(from), typename Vector<T, Bytes>::type);
  } else {
    alignas(Bytes) T numbers[Bytes / sizeof(T)];
    for (size_t lane = 0; lane < Bytes / sizeof(T); ++lane) numbers[lane] = static_cast<T>(to_float(from[lane]));
    return *reinterpret_cast<const typename Vector<T, Bytes>::type*>(numbers);
  }
}

template <class T, int Bytes>
void column_sums(const Strided& x, int64_t rows, int64_t k, T* to) {
  using V = typename Vector<T, Bytes>::type;
  using U = typename Vector<T, Bytes>::unaligned;
  constexpr int64_t kLanes = Bytes / sizeof(T), kVectors = 4;
  const T scale = static_cast<T>(x.scale);
  with_row(x, [&](const auto* from) {
    const int64_t whole = x.k_stride == 1 ? k / (kVectors * kLanes) * kVectors * kLanes : 0;
    for (int64_t begin = 0; begin < whole; begin += kVectors * kLanes) {
      V sums[kVectors] = {};
      for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 4
        for (int64_t v = 0; v < kVectors; ++v) {
          sums[v] += load_numbers<T, Bytes>(from + row * x.row_stride + begin + v * kLanes);
        }
      }
      for (int64_t v = 0; v < kVectors; ++v) *reinterpret_cast<U*>(to + begin + v * kLanes) = sums[v] * scale;
    }
    for (int64_t i = whole; i < k; ++i) {
      T sum = 0;
      for (int64_t row = 0; row < rows; ++row)
        sum += static_cast<T>(to_float(from[row * x.row_stride + i * x.k_stride]));
      to[i] = sum * scale;
    }
  });
}

// to [Block] = y [Block][k] (x - mean); the sums stay in registers.
template <class T, int Bytes, int Block, class Source>
void dots_of(const Source* x, int64_t stride, T scale, const T* mean, int64_t k, const T* y, T* to) {
  using V = typename Vector<T, Bytes>::type;
  using U = typename Vector<T, Bytes>::unaligned;
  constexpr int64_t kLanes = Bytes / sizeof(T);
  const int64_t whole = stride == 1 ? k / kLanes * kLanes : 0;
  V sums[Block] = {};
  for (int64_t begin = 0; begin < whole; begin += kLanes) {
    const V numbers = load_numbers<T, Bytes>(x + begin) * scale - *reinterpret_cast<const U*>(mean + begin);
#pragma GCC unroll 10
    for (int row = 0; row < Block; ++row) sums[row] += numbers * *reinterpret_cast<const U*>(y + row * k + begin);
  }
  V stored[(Block + 3) / 4 * 4] = {};
  for (int row = 0; row < Block; ++row) stored[row] = sums[row];
  sums_of_lanes<T, Bytes>(stored, Block, to);
  for (int64_t i = whole; i < k; ++i) {
    const T number = static_cast<T>(to_float(x[i * stride])) * scale - mean[i];
    for (int row = 0; row < Block; ++row) to[row] += number * y[row * k + i];
  }
}

// The same for the first Block of the `count` rows of y, or for all of them where there are fewer.
template <class T, int Bytes, int Block, class Source>
void dots_within(const Source* x, int64_t stride, T scale, const T* mean, int64_t k, const T* y, int64_t count, T* to) {
  if constexpr (Block > 1) {
    if (count < Block) {
      dots_within<T, Bytes, Block - 1>(x, stride, scale, mean, k, y, count, to);
      return;
    }
  }
  dots_of<T, Bytes, Block>(x, stride, scale, mean, k, y, to);
}

template <class T, int Bytes>
void dots(const Strided& x, const T* mean, int64_t k, const T* y, int64_t count, T* to) {
  constexpr int64_t kBlock = 10;
  const T scale = static_cast<T>(x.scale);
  with_row(x, [&](const auto* from) {
    for (int64_t row = 0; row < count; row += kBlock) {
      dots_within<T, Bytes, kBlock>(from, x.k_stride, scale, mean, k, y + row * k, count - row, to + row);
    }
  });
}

// A table with the members that are the same for every way to pack and multiply.
template <class T, int Bytes, auto Gemm>
constexpr TileKernels<T> tile_kernels(const Packing& packing, decltype(TileKernels<T>::pack) pack) {
  static_assert(16 % (Bytes / sizeof(T)) == 0);
  TileKernels<T> kernels = {};
  static_cast<Packing&>(kernels) = packing;
  kernels.pack = pack;
  kernels.gemm = Gemm;
  kernels.hadamard = &hadamard<T, Bytes>;
  kernels.hadamard_sums = &hadamard_sums<T, Bytes>;
  kernels.centered_hadamard = &centered_hadamard<T, Bytes>;
  kernels.centered_product = &centered_product<T, Bytes>;
  kernels.form_square_and_sums = &form_square_and_sums<T, Bytes>;
  kernels.product_form_square_and_sums = &product_form_square_and_sums<T, Bytes, Gemm>;
  kernels.column_sums = &column_sums<T, Bytes>;
  kernels.dots = &dots<T, Bytes>;
  kernels.sums = &sums<T, Bytes>;
  kernels.centered_form_and_square = &centered_form_and_square<T, Bytes>;
  kernels.product_form_and_square = &product_form_and_square<T, Bytes, Gemm>;
  kernels.axpy = &axpy<T>;
  kernels.dot = &dot<T>;
  kernels.largest = &largest;
  return kernels;
}

template <class Step, int Rows, int Vectors>
constexpr TileKernels<typename Step::Sum> tile_kernels() {
  using T = typename Step::Sum;
  constexpr int64_t kLanes = Step::kBytes / sizeof(T);
  static_assert(kPanel % Rows == 0 && kPanel % (Vectors * kLanes) == 0 && Rows <= 16);
  return tile_kernels<T, Step::kBytes, &gemm<Step, Rows, Vectors>>({Step::kPerPacked, sizeof(typename Step::Packed), 0},
                                                                   &pack<Step>);
}
