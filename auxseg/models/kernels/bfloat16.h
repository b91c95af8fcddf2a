// bfloat16, the upper half of a float, and products of matrices of it, whose sums are float32.
//
// Two units can multiply it. AMX takes tiles of 16 rows by 64 bytes, vdpbf16ps pairs of neighbouring numbers; for both
// the second matrix lies in pairs of rows. Matrices are padded with zeros to kStep<Bf16> rows and columns, and those
// that AMX reads have as many rows of slack behind them.

#pragma once

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define AUXSEG_AMX 1
#endif

#include "common.h"

namespace {

struct Bf16 {
  std::uint16_t bits;
};

typedef std::uint16_t Shorts __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
typedef std::uint32_t Words __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

ALWAYS_INLINE Words load_words(const Bf16* p) {
  return __builtin_convertvector(*reinterpret_cast<const Shorts*>(p), Words);
}

ALWAYS_INLINE Vector load(const Bf16* p) { return reinterpret_cast<Vector>(load_words(p) << 16); }

// The numbers rounded to the nearest bfloat16, to even where two are as near; each in the lower half of a word.
ALWAYS_INLINE Words round_words(Vector v) {
  const Words bits = reinterpret_cast<Words>(v);
  const Words rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return (v == v ? rounded : bits | 0x400000) >> 16;
}

ALWAYS_INLINE void store(Bf16* p, Vector v) {
#if defined(__AVX512BF16__)
  *reinterpret_cast<Shorts*>(p) = reinterpret_cast<Shorts>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)));
#else
  *reinterpret_cast<Shorts*>(p) = __builtin_convertvector(round_words(v), Shorts);
#endif
}

ALWAYS_INLINE float to_float(float value) { return value; }
ALWAYS_INLINE float to_float(Bf16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

ALWAYS_INLINE void put(float* p, float value) { *p = value; }
ALWAYS_INLINE void put(Bf16* p, float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  p->bits = (value == value ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000) >> 16;
}

// To what the rows and columns of a product's matrices are padded.
template <typename T>
constexpr Index kStep = kLanes;
template <>
constexpr Index kStep<Bf16> = 32;

template <typename T = float>
Index round_up(Index n) {
  return (n + kStep<T> - 1) / kStep<T> * kStep<T>;
}
// Of the rows of a buffer of n channels: not a multiple of a page, or all rows share a few lines of the cache.
template <typename T = float>
Index stride_of(Index n) {
  return round_up<T>(n) + kStep<T>;
}

// What multiplies bfloat16 here: 0 nothing, 1 vdpbf16ps, 2 AMX, which the system must be asked for.
int find_unit() {
#if defined(AUXSEG_AMX)
  constexpr long kAskForState = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kAskForState, kTileData) == 0) return 2;
#endif
#if defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}
int unit = 0;

#if defined(__AVX512BF16__)

ALWAYS_INLINE Words pair(Words even, Words odd) { return even | (odd << 16); }

// 16 vectors of words, aligned to their size: rows for columns.
ALWAYS_INLINE void transpose(Words rows[16]) {
  __m512i* r = reinterpret_cast<__m512i*>(rows);
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // r[4 g + i] holds columns i, i + 4, ... of rows 4 g to 4 g + 3
    const __m512i low = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), high = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    t[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    t[i + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    t[i + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

constexpr Index kBf16Panel = 32;  // columns of a tile of the result: two vectors, or two tiles of the unit
constexpr Index kBf16Rows = 32;   // rows of it

// Makes the unit of this thread ready as long as it lives.
class Tiles {
 public:
#if defined(AUXSEG_AMX)
  Tiles() {
    if (unit != 2) return;
    struct alignas(64) {
      std::uint8_t palette = 1, start = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    _tile_loadconfig(&shapes);
  }
  ~Tiles() {
    if (unit == 2) _tile_release();
  }
#else
  Tiles() {}
#endif
  Tiles(const Tiles&) = delete;
};

// A matrix B [depth, columns] of floats, rounded, in panels of kBf16Panel columns: [depth / 2, kBf16Panel] pairs.
class PairPanels {
 public:
  PairPanels(ffi::ThreadPool& pool, const float* b, Index depth, Index columns, bool transposed)
      : given_(depth), depth_(round_up<Bf16>(depth)), columns_(columns), data_(depth_ / 2 * round_up<Bf16>(columns)) {
    const Index panels = round_up<Bf16>(columns) / kBf16Panel;
    const Index pieces = depth * columns < 4096 ? 1 : std::min<Index>(panels, 4 * count_threads(pool));
    parallel_for(pool, pieces, [=](Index piece) {
      for (Index panel = panels * piece / pieces; panel < panels * (piece + 1) / pieces; ++panel) {
        for (Index first = panel * kBf16Panel; first < (panel + 1) * kBf16Panel; first += kLanes) {
          transposed ? fill_transposed(b, first) : fill(b, first);
        }
      }
    });
  }
  Index depth() const { return depth_; }
  Index columns() const { return columns_; }
  const std::uint32_t* at(Index column) const { return data_.get() + column * depth_ / 2; }

 private:
  std::uint32_t* out_of(Index column) const {
    return data_.get() + column / kBf16Panel * kBf16Panel * depth_ / 2 + column % kBf16Panel;
  }

  void fill(const float* b, Index first) const {
    const Index width = std::clamp<Index>(columns_ - first, 0, kLanes);
    std::uint32_t* out = out_of(first);
    for (Index k = 0; k < given_ && width; k += 2) {
      Vector rows[2] = {};
      for (Index i = 0; i < 2 && k + i < given_; ++i) {
        std::memcpy(&rows[i], b + (k + i) * columns_ + first, width * sizeof(float));
      }
      *reinterpret_cast<Words*>(out + k / 2 * kBf16Panel) = pair(round_words(rows[0]), round_words(rows[1]));
    }
  }

  void fill_transposed(const float* b, Index first) const {  // b is [columns, depth]
    const Index width = std::clamp<Index>(columns_ - first, 0, kLanes);
    for (Index k = 0; k < given_ && width; k += 2 * kLanes) {
      const Index length = std::min(2 * kLanes, given_ - k);
      alignas(64) Words pairs[kLanes] = {};
      for (Index j = 0; j < width; ++j) {
        float row[2 * kLanes] = {};
        std::memcpy(row, b + (first + j) * given_ + k, length * sizeof(float));
        Bf16* to = reinterpret_cast<Bf16*>(&pairs[j]);
        store(to, load(row));
        store(to + kLanes, load(row + kLanes));
      }
      transpose(pairs);
      for (Index i = 0; i < kLanes; ++i) *reinterpret_cast<Words*>(out_of(first) + (k / 2 + i) * kBf16Panel) = pairs[i];
    }
  }

  Index given_, depth_, columns_;
  BufferOf<std::uint32_t> data_;
};

ALWAYS_INLINE Vector add_products(Vector sum, Words a, Words b) {
  return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a),
                                                   reinterpret_cast<__m512bh>(b)));
}

constexpr Index kPairRows = 8;

// out [kPairRows, kBf16Panel] (+)= A B for pairs B [pairs, kBf16Panel]; pair k of row i of A lies at
// a + i * row + k * next.
void multiply_pairs(const std::uint32_t* a, Index row, Index next, const std::uint32_t* b, Index pairs, float* out,
                    Index ldc, bool adds) {
  Vector sums[kPairRows][2];
  for (Index i = 0; i < kPairRows; ++i) {
    for (Index v = 0; v < 2; ++v) sums[i][v] = adds ? load(out + i * ldc + v * kLanes) : Vector{};
  }
  for (Index k = 0; k < pairs; ++k) {
    Words here[2];
    for (Index v = 0; v < 2; ++v) here[v] = *reinterpret_cast<const Words*>(b + k * kBf16Panel + v * kLanes);
    for (Index i = 0; i < kPairRows; ++i) {
      std::uint32_t both;
      std::memcpy(&both, a + i * row + k * next, sizeof(both));
      const Words spread = both - Words{};
      for (Index v = 0; v < 2; ++v) sums[i][v] = add_products(sums[i][v], spread, here[v]);
    }
  }
  for (Index i = 0; i < kPairRows; ++i) {
    for (Index v = 0; v < 2; ++v) store(out + i * ldc + v * kLanes, sums[i][v]);
  }
}

// out [kBf16Rows, kBf16Panel] = A [rows, depth] B.
void multiply_block(const Bf16* a, Index lda, Index rows, const std::uint32_t* b, Index depth, float* out) {
#if defined(AUXSEG_AMX)
  if (unit == 2) {
    __asm__ volatile("" ::: "memory");  // the compiler does not know that tiles read memory
    const bool both = rows > 16;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (Index k = 0; k < depth; k += 32) {
      const std::uint32_t* here = b + k / 2 * kBf16Panel;
      _tile_loadd(4, a + k, lda * sizeof(Bf16));
      _tile_loadd(6, here, kBf16Panel * 4);
      _tile_loadd(7, here + 16, kBf16Panel * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (both) {
        _tile_loadd(5, a + 16 * lda + k, lda * sizeof(Bf16));
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, out, kBf16Panel * 4);
    _tile_stored(1, out + 16, kBf16Panel * 4);
    if (both) {
      _tile_stored(2, out + 16 * kBf16Panel, kBf16Panel * 4);
      _tile_stored(3, out + 16 * kBf16Panel + 16, kBf16Panel * 4);
    }
    return;
  }
#endif
  for (Index row = 0; row < rows; row += kPairRows) {
    const auto* from = reinterpret_cast<const std::uint32_t*>(a + row * lda);
    multiply_pairs(from, lda / 2, 1, b, depth / 2, out + row * kBf16Panel, kBf16Panel, false);
  }
}

template <typename Out>
ALWAYS_INLINE void write_columns(const float* from, const float* bias, Index columns, Out* to) {
  Index c = 0;
  for (; c + kLanes <= columns; c += kLanes) store(to + c, bias ? load(from + c) + load(bias + c) : load(from + c));
  for (; c < columns; ++c) put(to + c, bias ? from[c] + bias[c] : from[c]);
}

// C = A B + bias (or null) for several lines, each a matrix A [rows, depth of B] and a result of as many rows of just
// the columns of B; the lines of A lie one after another, those of C at `lines`.
template <typename Out>
void multiply_lines(const Bf16* a, Index lda, Index rows, const std::vector<Out*>& lines, const PairPanels& b,
                    Index ldc, const float* bias) {
  const Tiles tiles;
  const Index total = rows * static_cast<Index>(lines.size());
  alignas(64) float block[kBf16Rows * kBf16Panel];
  for (Index column = 0; column < b.columns(); column += kBf16Panel) {
    const Index width = std::min(kBf16Panel, b.columns() - column);
    Index line = 0, row = 0;
    for (Index first = 0; first < total; first += kBf16Rows) {
      const Index here = std::min(kBf16Rows, total - first);
      multiply_block(a + first * lda, lda, here, b.at(column), b.depth(), block);
      for (Index i = 0; i < here; ++i) {
        write_columns(block + i * kBf16Panel, bias ? bias + column : nullptr, width, lines[line] + row * ldc + column);
        if (++row == rows) row = 0, ++line;
      }
    }
  }
}

constexpr Index kPairedPixels = 128;  // of an outer product at once

// `pairs` pairs of rows of B [depth, columns] in panels of kPairedPixels / 2; zeros behind the last row.
void pair_rows(const Bf16* b, Index ldb, Index depth, Index columns, Index pairs, std::uint32_t* out) {
  for (Index column = 0; column < columns; column += kLanes) {
    std::uint32_t* to = out + column / kBf16Panel * kBf16Panel * (kPairedPixels / 2) + column % kBf16Panel;
    for (Index k = 0; k < 2 * pairs; k += 2, to += kBf16Panel) {
      const Words even = k < depth ? load_words(b + k * ldb + column) : Words{};
      const Words odd = k + 1 < depth ? load_words(b + (k + 1) * ldb + column) : Words{};
      *reinterpret_cast<Words*>(to) = pair(even, odd);
    }
  }
}

// D [kBf16Rows, kBf16Panel] += pairs A transposed times pairs B, both [pairs, 32].
void add_outer_block(std::uint32_t* a, const std::uint32_t* b, Index pairs, float* d, Index ldd) {
#if defined(AUXSEG_AMX)
  if (unit == 2) {
    __asm__ volatile("" ::: "memory");  // as above
    const Index bytes = ldd * sizeof(float);
    _tile_loadd(0, d, bytes);
    _tile_loadd(1, d + 16, bytes);
    _tile_loadd(2, d + 16 * ldd, bytes);
    _tile_loadd(3, d + 16 * ldd + 16, bytes);
    for (Index k = 0; k < pairs; k += 16) {
      _tile_loadd(4, a + k * kBf16Panel, kBf16Panel * 4);
      _tile_loadd(5, a + k * kBf16Panel + 16, kBf16Panel * 4);
      _tile_loadd(6, b + k * kBf16Panel, kBf16Panel * 4);
      _tile_loadd(7, b + k * kBf16Panel + 16, kBf16Panel * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, d, bytes);
    _tile_stored(1, d + 16, bytes);
    _tile_stored(2, d + 16 * ldd, bytes);
    _tile_stored(3, d + 16 * ldd + 16, bytes);
    return;
  }
#endif
  for (Index row = 0; row < kBf16Rows; row += kPairRows) {
    multiply_pairs(a + row, 1, kBf16Panel, b, pairs, d + row * ldd, ldd, true);
  }
}

// D [round_up(rows_d), columns] += A [depth, rows_d] transposed, times B [depth, columns]; columns are padded.
void add_outer(const Bf16* a, Index lda, Index rows_d, const Bf16* b, Index ldb, Index columns, Index depth, float* d,
               Index ldd) {
  const Tiles tiles;
  static thread_local BufferOf<std::uint32_t> kept;
  static thread_local Index kept_columns = 0;
  if (kept_columns < columns) kept = BufferOf<std::uint32_t>(kPairedPixels / 2 * columns), kept_columns = columns;
  alignas(64) std::uint32_t turned[kPairedPixels / 2 * kBf16Rows];
  for (Index first = 0; first < depth; first += kPairedPixels) {
    const Index here = std::min(kPairedPixels, depth - first), pairs = (here + 31) / 32 * 16;
    pair_rows(b + first * ldb, ldb, here, columns, pairs, kept.get());
    for (Index row = 0; row < rows_d; row += kBf16Rows) {
      pair_rows(a + first * lda + row, lda, here, kBf16Rows, pairs, turned);
      if (unit == 2) {  // each 16 pairs of 16 rows are one tile
        for (Index k = 0; k < pairs; k += 16) {
          for (Index half = 0; half < kBf16Rows; half += 16) {
            alignas(64) Words rows[16];
            std::uint32_t* at = turned + k * kBf16Rows + half;
            for (Index i = 0; i < 16; ++i) rows[i] = *reinterpret_cast<Words*>(at + i * kBf16Rows);
            transpose(rows);
            for (Index i = 0; i < 16; ++i) *reinterpret_cast<Words*>(at + i * kBf16Rows) = rows[i];
          }
        }
      }
      for (Index column = 0; column < columns; column += kBf16Panel) {
        add_outer_block(turned, kept.get() + column * (kPairedPixels / 2), pairs, d + row * ldd + column, ldd);
      }
    }
  }
}

#endif  // __AVX512BF16__

}  // namespace
