// Products of matrices of float32, by tiles that stay in registers.

#pragma once

#include "bfloat16.h"
#include "common.h"

namespace {

// C [M, kVectors vectors] = bias + A [M, K] B; B is a panel [K, kVectors * kLanes].
template <Index M, Index kVectors>
ALWAYS_INLINE void multiply_tile(const float* a, Index lda, const float* b, Index depth, float* c, Index ldc,
                                 const float* bias) {
  Vector sums[M][kVectors];
  for (Index i = 0; i < M; ++i) {
    for (Index v = 0; v < kVectors; ++v) sums[i][v] = bias ? load(bias + v * kLanes) : Vector{};
  }
  for (Index k = 0; k < depth; ++k) {
    Vector row[kVectors];
    for (Index v = 0; v < kVectors; ++v) row[v] = load(b + k * kVectors * kLanes + v * kLanes);
    for (Index i = 0; i < M; ++i) {
      const float factor = a[i * lda + k];
      for (Index v = 0; v < kVectors; ++v) sums[i][v] += factor * row[v];
    }
  }
  for (Index i = 0; i < M; ++i) {
    for (Index v = 0; v < kVectors; ++v) store(c + i * ldc + v * kLanes, sums[i][v]);
  }
}

// D [M, kVectors vectors] += A [K, M] transposed, times B [K, kVectors * kLanes].
template <Index M, Index kVectors>
ALWAYS_INLINE void add_outer_tile(const float* a, Index lda, const float* b, Index ldb, Index depth, float* d,
                                  Index ldd) {
  Vector sums[M][kVectors];
  for (Index i = 0; i < M; ++i) {
    for (Index v = 0; v < kVectors; ++v) sums[i][v] = Vector{};
  }
  for (Index k = 0; k < depth; ++k) {
    Vector row[kVectors];
    for (Index v = 0; v < kVectors; ++v) row[v] = load(b + k * ldb + v * kLanes);
    for (Index i = 0; i < M; ++i) {
      const float factor = a[k * lda + i];
      for (Index v = 0; v < kVectors; ++v) sums[i][v] += factor * row[v];
    }
  }
  for (Index i = 0; i < M; ++i) {
    for (Index v = 0; v < kVectors; ++v) {
      float* where = d + i * ldd + v * kLanes;
      store(where, load(where) + sums[i][v]);
    }
  }
}

// A matrix B [depth, columns] in panels, each [depth, kPanel]; the last may have kLanes columns, padded with zeros.
class Panels {
 public:
  Panels(ffi::ThreadPool& pool, const float* b, Index depth, Index columns, bool transposed)
      : depth_(depth), columns_(columns), padded_(round_up(columns)), data_(depth * padded_) {
    const Index panels = (padded_ + kPanel - 1) / kPanel;
    const Index pieces = depth * columns < 4096 ? 1 : std::min<Index>(panels, 4 * count_threads(pool));
    parallel_for(pool, pieces, [=](Index piece) {
      for (Index panel = panels * piece / pieces; panel < panels * (piece + 1) / pieces; ++panel) {
        fill(b, panel * kPanel, transposed);
      }
    });
  }
  Index depth() const { return depth_; }
  Index columns() const { return columns_; }
  Index padded() const { return padded_; }
  const float* at(Index column) const { return data_.get() + column * depth_; }

 private:
  void fill(const float* b, Index first, bool transposed) const {
    const Index width = std::min(kPanel, padded_ - first), given = std::min(width, columns_ - first);
    float* out = data_.get() + first * depth_;
    for (Index start = 0; start < depth_; start += 16) {  // columns of B transposed are rows: a few at a time
      const Index end = std::min(start + 16, depth_);
      for (Index j = 0; transposed && j < given; ++j) {
        for (Index k = start; k < end; ++k) out[k * width + j] = b[(first + j) * depth_ + k];
      }
      for (Index k = start; !transposed && k < end; ++k) {
        std::memcpy(out + k * width, b + k * columns_ + first, given * sizeof(float));
      }
    }
  }

  Index depth_, columns_, padded_;
  Buffer data_;
};

// C = A B + bias (padded, or null) for several lines, each a matrix A [rows, depth of B] and a result of as many rows
// that hold the padded columns; the lines of A lie one after another, those of C at `lines`.
void multiply_padded(const float* a, Index lda, Index rows, const std::vector<float*>& lines, const Panels& b,
                     Index ldc, const float* bias) {
  for (Index column = 0; column < b.padded(); column += kPanel) {
    const bool whole = column + kPanel <= b.padded();
    const float *start = bias ? bias + column : nullptr, *from = a;
    for (float* line : lines) {
      for (Index row = 0; row < rows; row += kRows) {
        with_rows<kRows>(std::min(kRows, rows - row), [&](auto m) {
          float* to = line + row * ldc + column;
          if (whole) {
            multiply_tile<m.value, 2>(from + row * lda, lda, b.at(column), b.depth(), to, ldc, start);
          } else {
            multiply_tile<m.value, 1>(from + row * lda, lda, b.at(column), b.depth(), to, ldc, start);
          }
        });
      }
      from += rows * lda;
    }
  }
}

// The same where the rows of C may hold just the columns of B.
void multiply_lines(const float* a, Index lda, Index rows, const std::vector<float*>& lines, const Panels& b,
                    Index ldc, const float* bias) {
  if (b.padded() <= ldc) return multiply_padded(a, lda, rows, lines, b, ldc, bias);
  const Buffer wide(rows * b.padded(), false);
  for (std::size_t line = 0; line < lines.size(); ++line) {
    multiply_padded(a + line * rows * lda, lda, rows, {wide.get()}, b, b.padded(), bias);
    for (Index row = 0; row < rows; ++row) {
      std::memcpy(lines[line] + row * ldc, wide.get() + row * b.padded(), b.columns() * sizeof(float));
    }
  }
}

// The matrix B of a product whose A is of T.
template <typename T>
struct MatrixFor {
  using type = Panels;
};
#if defined(__AVX512BF16__)
template <>
struct MatrixFor<Bf16> {
  using type = PairPanels;
};
#endif
template <typename T>
using Matrix = typename MatrixFor<T>::type;

// D [rows_d, columns] += A [depth, rows_d] transposed, times B [depth, columns]; columns is a multiple of kLanes.
void add_outer(const float* a, Index lda, Index rows_d, const float* b, Index ldb, Index columns, Index depth,
               float* d, Index ldd) {
  for (Index column = 0; column < columns; column += kPanel) {
    const bool whole = column + kPanel <= columns;
    for (Index row = 0; row < rows_d; row += kRows) {
      with_rows<kRows>(std::min(kRows, rows_d - row), [&](auto m) {
        float* to = d + row * ldd + column;
        if (whole) {
          add_outer_tile<m.value, 2>(a + row, lda, b + column, ldb, depth, to, ldd);
        } else {
          add_outer_tile<m.value, 1>(a + row, lda, b + column, ldb, depth, to, ldd);
        }
      });
    }
  }
}

}  // namespace
