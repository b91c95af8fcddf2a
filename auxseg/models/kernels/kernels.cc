// The network's operators on a CPU, float32, channels last; `fused.py` says what each returns and binds their gradients.
//
// A depthwise-separable convolution reads relu(values * factor + shift) of up to two arrays side by side, filters a
// few rows of it with the 3x3 taps and multiplies them by the pointwise matrix while they lie in the second-level
// cache: neither the images nor what the taps give is ever written to memory. Its gradient goes down the rows the same
// way. An upsampling is two products a row, a 1x1 convolution one. Work is split into strips of rows, strips into the
// threads of XLA's own pool; sums over strips are taken in a fixed order, so that a result is the same each time on
// one machine.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;
using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr Index kLanes = 16, kRows = 12;
#elif defined(__AVX__)
constexpr Index kLanes = 8, kRows = 6;
#elif defined(__aarch64__)
constexpr Index kLanes = 4, kRows = 12;
#else
constexpr Index kLanes = 4, kRows = 6;
#endif
constexpr Index kPanel = 2 * kLanes;          // columns of a matrix product's tile; it has kRows rows
constexpr Index kTileFloats = 20 * 1024;      // of a tile: with what it is made of, within a second-level cache
constexpr Index kBlock = 4;                   // neighbouring pixels that are filtered at once

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));
#define ALWAYS_INLINE inline __attribute__((always_inline))

ALWAYS_INLINE Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
ALWAYS_INLINE void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }
Index round_up(Index n) { return (n + kLanes - 1) / kLanes * kLanes; }
// Of the rows of a buffer of n channels: not a multiple of a page, or all rows share a few lines of the cache.
Index stride_of(Index n) { return round_up(n) + kLanes; }

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(Index size, bool cleared = true) {
    const std::size_t bytes = (size * sizeof(float) + 63) / 64 * 64 + 64;
    data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    if (cleared) std::memset(data_.get(), 0, bytes);
  }
  float* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
};

// ---- threads -------------------------------------------------------------------------------------------------------

Index count_threads(ffi::ThreadPool& pool) { return std::max<Index>(1, pool.num_threads()); }

struct Job {
  std::function<void(Index)> run;
  Index total = 0;
  std::atomic<Index> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable finished;
  std::exception_ptr error;

  void work() {
    for (Index item; (item = next.fetch_add(1)) < total;) {
      try {
        run(item);
      } catch (...) {  // out of memory: the caller raises it, once nobody works on the job any more
        std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
      if (done.fetch_add(1) + 1 == total) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }
};

// Runs items 0 to total - 1. The caller takes part and waits only for items that others have begun, so that a pool
// whose threads are all busy (or are themselves callers) delays nothing.
void parallel_for(ffi::ThreadPool& pool, Index total, std::function<void(Index)> run) {
  auto job = std::make_shared<Job>();
  job->run = std::move(run);
  job->total = total;
  for (Index helper = 1; helper < std::min<Index>(total, pool.num_threads()); ++helper) {
    pool.Schedule([job] { job->work(); });
  }
  job->work();
  std::unique_lock<std::mutex> lock(job->mutex);
  job->finished.wait(lock, [&] { return job->done.load() == job->total; });
  if (job->error) std::rethrow_exception(job->error);
}

struct Strip {
  Index image, start, end;
};

// Cuts images into strips of rows, so that the threads get as many; strip i is of slot i % slots.
std::vector<Strip> cut_strips(Index images, Index rows, Index threads) {
  Index parts = 1;
  while (images * parts % threads && parts < threads) ++parts;
  parts = std::max<Index>(1, std::min(parts, rows / 4));
  std::vector<Strip> strips;
  for (Index image = 0; image < images; ++image) {
    for (Index part = 0; part < parts; ++part) {
      strips.push_back({image, rows * part / parts, rows * (part + 1) / parts});
    }
  }
  return strips;
}

Index count_slots(ffi::ThreadPool& pool, Index strips) {
  return std::min(count_threads(pool), strips);
}

// Runs `run(slot, strip)`; the strips of a slot one after another.
template <typename Run>
void over_strips(ffi::ThreadPool& pool, const std::vector<Strip>& strips, Index slots, Run run) {
  parallel_for(pool, slots, [&strips, slots, &run](Index slot) {
    for (Index i = slot; i < static_cast<Index>(strips.size()); i += slots) run(slot, strips[i]);
  });
}

// Adds the slots' sums [slots][size] into `out`, in their order.
void add_slots(ffi::ThreadPool& pool, const std::vector<Buffer>& slots, float* out, Index size) {
  const Index pieces = std::max<Index>(1, std::min(count_threads(pool), size / 4096));
  parallel_for(pool, pieces, [&slots, out, size, pieces](Index piece) {
    const Index start = size * piece / pieces, end = size * (piece + 1) / pieces;
    std::memcpy(out + start, slots[0].get() + start, (end - start) * sizeof(float));
    for (std::size_t slot = 1; slot < slots.size(); ++slot) {
      const float* __restrict from = slots[slot].get();
      for (Index i = start; i < end; ++i) out[i] += from[i];
    }
  });
}

// ---- products of matrices ------------------------------------------------------------------------------------------

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

// Calls `call.template run<M>()` with M the number of rows, 1 to kMax.
template <Index kMax, typename Call>
ALWAYS_INLINE void with_rows(Index rows, Call call) {
  if constexpr (kMax > 0) {
    if (rows == kMax) {
      call(std::integral_constant<Index, kMax>());
    } else {
      with_rows<kMax - 1>(rows, call);
    }
  }
}

// A matrix B [depth, columns] in panels, each [depth, kPanel]; the last may have kLanes columns, padded with zeros.
class Panels {
 public:
  Panels(ffi::ThreadPool& pool, const float* b, Index depth, Index columns, bool transposed)
      : depth_(depth), columns_(round_up(columns)), data_(depth * columns_) {
    const Index panels = (columns_ + kPanel - 1) / kPanel;
    const Index pieces = depth * columns < 4096 ? 1 : std::min<Index>(panels, 4 * count_threads(pool));
    parallel_for(pool, pieces, [=](Index piece) {
      for (Index panel = panels * piece / pieces; panel < panels * (piece + 1) / pieces; ++panel) {
        fill(b, panel * kPanel, columns, transposed);
      }
    });
  }
  Index depth() const { return depth_; }
  Index columns() const { return columns_; }
  const float* at(Index column) const { return data_.get() + column * depth_; }

 private:
  void fill(const float* b, Index first, Index columns, bool transposed) const {
    const Index width = std::min(kPanel, columns_ - first), given = std::min(width, columns - first);
    float* out = data_.get() + first * depth_;
    for (Index start = 0; start < depth_; start += 16) {  // columns of B transposed are rows: a few at a time
      const Index end = std::min(start + 16, depth_);
      for (Index j = 0; transposed && j < given; ++j) {
        for (Index k = start; k < end; ++k) out[k * width + j] = b[(first + j) * depth_ + k];
      }
      for (Index k = start; !transposed && k < end; ++k) {
        std::memcpy(out + k * width, b + k * columns + first, given * sizeof(float));
      }
    }
  }

  Index depth_, columns_;
  Buffer data_;
};

// C = A B + bias (padded, or null) for several lines, each a matrix A [rows, depth of B] and a result of as many rows
// that hold round_up(columns); the lines of A lie one after another, those of C where `line_of` says.
template <typename LineOf>
void multiply_lines(const float* a, Index lda, Index rows, Index lines, const Panels& b, LineOf line_of, Index ldc,
                    const float* bias) {
  for (Index column = 0; column < b.columns(); column += kPanel) {
    const bool whole = column + kPanel <= b.columns();
    const float* start = bias ? bias + column : nullptr;
    for (Index line = 0; line < lines; ++line) {
      for (Index row = 0; row < rows; row += kRows) {
        with_rows<kRows>(std::min(kRows, rows - row), [&](auto m) {
          const float* from = a + (line * rows + row) * lda;
          float* to = line_of(line) + row * ldc + column;
          if (whole) {
            multiply_tile<m.value, 2>(from, lda, b.at(column), b.depth(), to, ldc, start);
          } else {
            multiply_tile<m.value, 1>(from, lda, b.at(column), b.depth(), to, ldc, start);
          }
        });
      }
    }
  }
}

void multiply(const float* a, Index lda, Index rows, const Panels& b, float* c, Index ldc, const float* bias) {
  multiply_lines(a, lda, rows, 1, b, [c](Index) { return c; }, ldc, bias);
}

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

// ---- rows of images ------------------------------------------------------------------------------------------------

// One array of a concatenation: relu(values * factor + shift), or the values themselves where `raw`.
struct Part {
  const float *values, *factor, *shift;
  Index channels, stored, offset;  // `stored` is 1 where one channel is spread by the factor
  bool raw;
};

struct Shape {
  Index images, rows, columns;
};

ALWAYS_INLINE float rectify(float value) { return value < 0.0f ? 0.0f : value; }  // keeps what is not a number

// The larger of two numbers or vectors; what is not a number wins.
template <typename T>
ALWAYS_INLINE T larger(T a, T b) {
  return (b <= a) | (a != a) ? a : b;
}

// Calls `call(channel, float or Vector)` so that all channels are done, kLanes at a time as long as there are as many.
template <typename Call>
ALWAYS_INLINE void over_channels(Index channels, Call call) {
  Index c = 0;
  for (; c + kLanes <= channels; c += kLanes) call(c, Vector{});
  for (; c < channels; ++c) call(c, 0.0f);
}

ALWAYS_INLINE float sum_lanes(float value) { return value; }
ALWAYS_INLINE float sum_lanes(Vector values) {
  float total = 0.0f;
  for (Index lane = 0; lane < kLanes; ++lane) total += values[lane];
  return total;
}

template <typename T>
ALWAYS_INLINE T read_as(const float* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <typename T>
ALWAYS_INLINE void write_as(float* p, T value) {
  std::memcpy(p, &value, sizeof(T));
}

// Writes a row of the activated images of a part at its channels; `out` has `stride` floats a pixel.
void activate_row(const Part& part, const Shape& shape, Index image, Index y, float* out, Index stride) {
  const float* row = part.values + (image * shape.rows + y) * shape.columns * part.stored;
  const float *factor = part.factor + image * part.channels, *shift = part.shift + image * part.channels;
  for (Index x = 0; x < shape.columns; ++x) {
    const float* __restrict from = row + x * part.stored;
    float* __restrict to = out + x * stride + part.offset;
    if (part.raw) {
      std::memcpy(to, from, part.channels * sizeof(float));
    } else if (part.stored == part.channels) {
      for (Index c = 0; c < part.channels; ++c) to[c] = rectify(from[c] * factor[c] + shift[c]);
    } else {
      for (Index c = 0; c < part.channels; ++c) to[c] = rectify(from[0] * factor[c] + shift[c]);
    }
  }
}

// Rows of a strip, the last few of them, with a border of one pixel: row y lies at y modulo their number.
class Ring {
 public:
  Ring(Index rows, Index columns, Index channels)
      : rows_(rows), stride_(stride_of(channels)), size_((columns + 2) * stride_), data_(rows * size_) {}
  float* row(Index y) const { return data_.get() + (y + rows_) % rows_ * size_; }
  float* pixels(Index y) const { return row(y) + stride_; }
  void clear(Index y) const { std::memset(row(y), 0, size_ * sizeof(float)); }
  Index stride() const { return stride_; }

 private:
  Index rows_, stride_, size_;
  Buffer data_;
};

// Makes row y of the concatenated images, zeros outside the image.
void fill_row(const Ring& ring, const std::vector<Part>& parts, const Shape& shape, Index image, Index y) {
  if (y < 0 || y >= shape.rows) {
    ring.clear(y);
    return;
  }
  for (const Part& part : parts) activate_row(part, shape, image, y, ring.pixels(y), ring.stride());
}

template <Index N>
ALWAYS_INLINE void filter_pixels(const float* const rows[3], Index stride, const float* taps, Index padded, float* out,
                                 Index out_stride) {
  for (Index c = 0; c < padded; c += kLanes) {
    Vector sums[N];
    for (Index i = 0; i < N; ++i) sums[i] = Vector{};
    for (Index dy = 0; dy < 3; ++dy) {
      Vector tap[3];
      for (Index dx = 0; dx < 3; ++dx) tap[dx] = load(taps + (3 * dy + dx) * padded + c);
      for (Index j = 0; j < N + 2; ++j) {
        const Vector value = load(rows[dy] + j * stride + c);
        for (Index dx = 0; dx < 3; ++dx) {
          if (j - dx >= 0 && j - dx < N) sums[j - dx] += value * tap[dx];
        }
      }
    }
    for (Index i = 0; i < N; ++i) store(out + i * out_stride + c, sums[i]);
  }
}

// Writes row y of the images in the ring filtered with taps [9, padded].
void filter_row(const Ring& ring, Index y, Index columns, const float* taps, Index padded, float* out, Index stride) {
  const float* rows[3] = {ring.row(y - 1), ring.row(y), ring.row(y + 1)};
  for (Index x = 0; x < columns; x += kBlock) {
    const float* at[3] = {rows[0] + x * ring.stride(), rows[1] + x * ring.stride(), rows[2] + x * ring.stride()};
    with_rows<kBlock>(std::min(kBlock, columns - x), [&](auto n) {
      filter_pixels<n.value>(at, ring.stride(), taps, padded, out + x * stride, stride);
    });
  }
}

template <Index N>
ALWAYS_INLINE void add_tap_sums(Vector sums[9], const float* const rows[3], Index stride, const float* gradient,
                                Index gradient_stride) {
  Vector part[N];
  for (Index i = 0; i < N; ++i) part[i] = load(gradient + i * gradient_stride);
  for (Index dy = 0; dy < 3; ++dy) {
    for (Index j = 0; j < N + 2; ++j) {
      const Vector value = load(rows[dy] + j * stride);
      for (Index dx = 0; dx < 3; ++dx) {
        if (j - dx >= 0 && j - dx < N) sums[3 * dy + dx] += value * part[j - dx];
      }
    }
  }
}

// Adds what row y gives to the taps' gradients [9, padded]: the images in the ring times the gradient.
void add_tap_gradients(const Ring& ring, Index y, Index columns, const float* gradient, Index stride, Index padded,
                       float* out) {
  const float* rows[3] = {ring.row(y - 1), ring.row(y), ring.row(y + 1)};
  for (Index c = 0; c < padded; c += kLanes) {
    Vector sums[9];
    for (Index tap = 0; tap < 9; ++tap) sums[tap] = Vector{};
    for (Index x = 0; x < columns; x += kBlock) {
      const float* at[3];
      for (Index dy = 0; dy < 3; ++dy) at[dy] = rows[dy] + x * ring.stride() + c;
      with_rows<kBlock>(std::min(kBlock, columns - x), [&](auto n) {
        add_tap_sums<n.value>(sums, at, ring.stride(), gradient + x * stride + c, stride);
      });
    }
    for (Index tap = 0; tap < 9; ++tap) {
      float* where = out + tap * padded + c;
      store(where, load(where) + sums[tap]);
    }
  }
}

struct PartGradient {
  float *values, *factor, *shift;  // factor and shift: sums over a strip, [channels]
};

// From the gradient of a row of activated images: of the values (written), of factor and shift (added up).
void finish_row(const Part& part, const PartGradient& out, const Shape& shape, Index image, Index y,
                const float* images, Index image_stride, const float* gradient, Index stride) {
  const Index first = (image * shape.rows + y) * shape.columns * part.stored;
  const float *values = part.values + first, *factor = part.factor + image * part.channels;
  float* out_values = out.values + first;
  images += part.offset;
  gradient += part.offset;
  if (part.raw) {
    for (Index x = 0; x < shape.columns; ++x) {
      std::memcpy(out_values + x * part.channels, gradient + x * stride, part.channels * sizeof(float));
    }
    return;
  }
  if (part.stored != part.channels) std::memset(out_values, 0, shape.columns * sizeof(float));
  over_channels(part.channels, [&](Index c, auto kind) {
    using T = decltype(kind);
    const T scale = read_as<T>(factor + c), none{};
    T factor_sum{}, shift_sum{};
    for (Index x = 0; x < shape.columns; ++x) {
      const T image_here = read_as<T>(images + x * image_stride + c);
      const T passed = image_here > none ? read_as<T>(gradient + x * stride + c) : none;
      shift_sum += passed;
      if (part.stored == part.channels) {
        factor_sum += passed * read_as<T>(values + x * part.stored + c);
        write_as<T>(out_values + x * part.stored + c, passed * scale);
      } else {
        factor_sum += passed * values[x];
        out_values[x] += sum_lanes(passed * scale);
      }
    }
    write_as<T>(out.factor + c, read_as<T>(out.factor + c) + factor_sum);
    write_as<T>(out.shift + c, read_as<T>(out.shift + c) + shift_sum);
  });
}

// Count, mean and sum of squared distances from the mean of some values.
struct Moments {
  double count = 0.0, mean = 0.0, spread = 0.0;

  void add(const Moments& other) {  // Chan, Golub and LeVeque 1983
    const double distance = other.mean - mean, total = count + other.count;
    spread += other.spread + distance * distance * count * other.count / total;
    mean += distance * other.count / total;
    count = total;
  }
};

// Adds pixels to the moments of each channel; sums are about the first pixel, or those of large values would cancel.
void add_moments(const float* values, Index stride, Index pixels, Index channels, Moments* moments, float* scratch) {
  float *sum = scratch, *square = scratch + channels;
  std::memset(scratch, 0, 2 * channels * sizeof(float));
  for (Index p = 0; p < pixels; ++p) {
    const float* __restrict row = values + p * stride;
    for (Index c = 0; c < channels; ++c) {
      const float from_first = row[c] - values[c];
      sum[c] += from_first;
      square[c] += from_first * from_first;
    }
  }
  const double n = static_cast<double>(pixels);
  for (Index c = 0; c < channels; ++c) {
    const double here = sum[c] / n;
    moments[c].add({n, values[c] + here, square[c] - here * here * n});
  }
}

// ---- the operators -------------------------------------------------------------------------------------------------

Part read_part(const Array& values, const Array& factor, const Array& shift, bool raw, Index offset = 0) {
  const Index stored = values.dimensions()[3], channels = raw ? stored : factor.dimensions()[1];
  return {values.typed_data(), factor.typed_data(), shift.typed_data(), channels, stored, offset, raw};
}

// One or two: the second may have no channels.
std::vector<Part> read_parts(const Array& v0, const Array& f0, const Array& s0, const Array& v1, const Array& f1,
                             const Array& s1, Index raw) {
  std::vector<Part> parts = {read_part(v0, f0, s0, raw & 1)};
  const Part second = read_part(v1, f1, s1, raw & 2, parts[0].channels);
  if (second.channels) parts.push_back(second);
  return parts;
}

Shape shape_of(const Array& values) {
  const auto sizes = values.dimensions();
  return {sizes[0], sizes[1], sizes[2]};
}

Buffer pad_rows(const float* from, Index rows, Index columns, bool reversed) {
  const Index padded = round_up(columns);
  Buffer out(rows * padded);
  for (Index row = 0; row < rows; ++row) {
    const Index source = reversed ? rows - 1 - row : row;
    std::memcpy(out.get() + row * padded, from + source * columns, columns * sizeof(float));
  }
  return out;
}

Index choose_tile_rows(Index columns, Index channels, Index most) {
  return std::max<Index>(1, std::min(most, kTileFloats / (columns * channels)));
}

// The last axis of `to` may be narrower than the rows of `from`.
void copy_rows(const float* from, Index stride, Index rows, Index columns, float* to) {
  for (Index row = 0; row < rows; ++row) std::memcpy(to + row * columns, from + row * stride, columns * sizeof(float));
}

ffi::Error separable_forward(ffi::ThreadPool pool, Array v0, Array f0, Array s0, Array v1, Array f1, Array s1,
                             Array depthwise, Array pointwise, Result out, Result mean, Result variance,
                             std::int64_t raw, bool with_moments) {
  const Shape shape = shape_of(v0);
  const Index channels = pointwise.dimensions()[0], features = pointwise.dimensions()[1];
  const std::vector<Part> parts = read_parts(v0, f0, s0, v1, f1, s1, raw);
  const Index padded = round_up(channels), wide = round_up(features), stride = stride_of(channels);
  const Buffer taps = pad_rows(depthwise.typed_data(), 9, channels, false);
  const Panels matrix(pool, pointwise.typed_data(), channels, features, false);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index slots = count_slots(pool, strips.size()), columns = shape.columns;
  const Index tile = choose_tile_rows(columns, padded, shape.rows);
  std::vector<Moments> moments(strips.size() * features);
  float* values = out->typed_data();

  over_strips(pool, strips, slots, [&](Index, const Strip& strip) {
    const Index which = &strip - strips.data();
    Ring ring(tile + 2, columns, channels);
    Buffer filtered(tile * columns * stride), scratch(2 * features);
    Buffer narrow(wide == features ? 0 : tile * columns * wide);
    Index ready = strip.start - 1;  // the next row of images to make
    for (Index y = strip.start; y < strip.end; y += tile) {
      const Index end = std::min(y + tile, strip.end), pixels = (end - y) * columns;
      for (; ready <= end; ++ready) fill_row(ring, parts, shape, strip.image, ready);
      for (Index row = y; row < end; ++row) {
        filter_row(ring, row, columns, taps.get(), padded, filtered.get() + (row - y) * columns * stride, stride);
      }
      float* to = values + (strip.image * shape.rows + y) * columns * features;
      if (wide == features) {
        multiply(filtered.get(), stride, pixels, matrix, to, features, nullptr);
      } else {
        multiply(filtered.get(), stride, pixels, matrix, narrow.get(), wide, nullptr);
        copy_rows(narrow.get(), wide, pixels, features, to);
      }
      if (with_moments) {
        add_moments(to, features, pixels, features, &moments[which * features], scratch.get());
      }
    }
  });
  float *out_mean = mean->typed_data(), *out_variance = variance->typed_data();
  std::memset(out_mean, 0, shape.images * features * sizeof(float));
  std::memset(out_variance, 0, shape.images * features * sizeof(float));
  const Index parts_of_image = strips.size() / shape.images;
  for (Index image = 0; with_moments && image < shape.images; ++image) {
    for (Index c = 0; c < features; ++c) {
      Moments whole;
      for (Index part = 0; part < parts_of_image; ++part) {
        whole.add(moments[(image * parts_of_image + part) * features + c]);
      }
      const double found = whole.spread / whole.count;
      out_mean[image * features + c] = static_cast<float>(whole.mean);
      out_variance[image * features + c] = static_cast<float>(found < 0.0 ? 0.0 : found);  // keeps what is no number
    }
  }
  return ffi::Error::Success();
}

// The gradients of factor and shift: a sum for each strip, added up by image at the end.
class ChannelSums {
 public:
  ChannelSums(Index strips, Index channels)
      : strips_(strips), channels_(channels), factor_(strips * channels), shift_(strips * channels) {}
  float* factor(Index strip) { return factor_.data() + strip * channels_; }
  float* shift(Index strip) { return shift_.data() + strip * channels_; }
  void write(Index images, float* factor, float* shift) const {
    add(factor_, images, factor);
    add(shift_, images, shift);
  }

 private:
  void add(const std::vector<float>& sums, Index images, float* out) const {
    std::memset(out, 0, images * channels_ * sizeof(float));
    for (Index strip = 0; strip < strips_; ++strip) {
      float* image = out + strip / (strips_ / images) * channels_;
      for (Index c = 0; c < channels_; ++c) image[c] += sums[strip * channels_ + c];
    }
  }

  Index strips_, channels_;
  std::vector<float> factor_, shift_;
};

// The gradient of a matrix: the sum over all pixels of inputs [pixels, channels] times gradients [pixels, features].
// Where the matrix is small each slot has a sum of its own, added to tile by tile. Where it is large beside the images
// that would cost more than the product: inputs and gradients are kept, and multiplied at the end, each thread making
// a part of the matrix.
class MatrixGradient {
 public:
  MatrixGradient(ffi::ThreadPool& pool, const Shape& shape, Index channels, Index features, Index slots)
      : channels_(channels), features_(features), wide_(round_up(features)), stride_(stride_of(channels)),
        wide_stride_(stride_of(features)), pixels_(shape.images * shape.rows * shape.columns),
        kept_(slots > 1 && channels * features >= kLargeMatrix) {
    if (kept_) {
      inputs_ = Buffer(pixels_ * stride_, false);
      gradients_ = Buffer(pixels_ * wide_stride_, false);
    }
    for (Index slot = 0; !kept_ && slot < slots; ++slot) sums_.emplace_back(channels * wide_);
  }

  // Where a tile that begins at pixel `first` is to be written: `here`, unless it is kept.
  float* inputs(Index first, float* here) const { return kept_ ? inputs_.get() + first * stride_ : here; }
  float* gradients(Index first, float* here) const { return kept_ ? gradients_.get() + first * wide_stride_ : here; }

  void add(Index slot, const float* inputs, const float* gradients, Index pixels) const {
    if (kept_) return;
    add_outer(inputs, stride_, channels_, gradients, wide_stride_, wide_, pixels, sums_[slot].get(), wide_);
  }

  void finish(ffi::ThreadPool& pool, float* out) const {
    Buffer padded(wide_ == features_ ? 0 : channels_ * wide_);
    float* total = wide_ == features_ ? out : padded.get();
    if (kept_) {
      multiply_kept(pool, total);
    } else {
      add_slots(pool, sums_, total, channels_ * wide_);
    }
    if (total != out) copy_rows(total, wide_, channels_, features_, out);
  }

 private:
  static constexpr Index kLargeMatrix = 96 * 1024, kKeptPixels = 128;

  void multiply_kept(ffi::ThreadPool& pool, float* out) const {
    const Index groups = (channels_ + kRows - 1) / kRows, pieces = std::min(count_threads(pool), groups);
    parallel_for(pool, pieces, [&](Index piece) {
      const Index start = groups * piece / pieces * kRows;
      const Index end = std::min(groups * (piece + 1) / pieces * kRows, channels_);
      std::memset(out + start * wide_, 0, (end - start) * wide_ * sizeof(float));
      for (Index first = 0; first < pixels_; first += kKeptPixels) {
        add_outer(inputs_.get() + first * stride_ + start, stride_, end - start,
                  gradients_.get() + first * wide_stride_, wide_stride_, wide_, std::min(kKeptPixels, pixels_ - first),
                  out + start * wide_, wide_);
      }
    });
  }

  Index channels_, features_, wide_, stride_, wide_stride_, pixels_;
  bool kept_;
  Buffer inputs_, gradients_;
  std::vector<Buffer> sums_;
};

ffi::Error separable_backward(ffi::ThreadPool pool, Array v0, Array f0, Array s0, Array v1, Array f1, Array s1,
                              Array depthwise, Array pointwise, Array values, Array gradient, Array constant,
                              Array slope, Result dv0, Result df0, Result ds0, Result dv1, Result df1, Result ds1,
                              Result ddepthwise, Result dpointwise, std::int64_t raw) {
  const Shape shape = shape_of(v0);
  const Index channels = pointwise.dimensions()[0], features = pointwise.dimensions()[1];
  const std::vector<Part> parts = read_parts(v0, f0, s0, v1, f1, s1, raw);
  Result* results[2][3] = {{&dv0, &df0, &ds0}, {&dv1, &df1, &ds1}};
  const Index padded = round_up(channels), wide = round_up(features);
  const Index stride = stride_of(channels), wide_stride = stride_of(features);
  const Buffer taps = pad_rows(depthwise.typed_data(), 9, channels, false);
  const Buffer turned = pad_rows(depthwise.typed_data(), 9, channels, true);
  const Panels transposed(pool, pointwise.typed_data(), features, channels, true);
  const std::vector<Strip> strips =
      cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index slots = count_slots(pool, strips.size()), columns = shape.columns;
  const Index tile = choose_tile_rows(columns, std::max(padded, wide), shape.rows);
  MatrixGradient matrix(pool, shape, channels, features, slots);
  std::vector<Buffer> tap_sums;
  for (Index slot = 0; slot < slots; ++slot) tap_sums.emplace_back(9 * padded);
  std::vector<ChannelSums> sums;
  for (const Part& part : parts) sums.emplace_back(strips.size(), part.channels);

  over_strips(pool, strips, slots, [&](Index slot, const Strip& strip) {
    const Index which = &strip - strips.data();
    Ring images(tile + 2, columns, channels), pulled(tile + 2, columns, channels);
    Buffer filtered_here(tile * columns * stride), gradients_here(tile * columns * wide_stride);
    Buffer row_gradient(columns * stride);

    // The gradient of rows of values, with what mean and variance add, and of the filtered images.
    const auto pull_rows = [&](Index y, Index rows, float* to) {
      const Index start = (strip.image * shape.rows + y) * columns * features;
      const float *given = gradient.typed_data() + start, *here = values.typed_data() + start;
      const float* __restrict shift = constant.typed_data() + strip.image * features;
      const float* __restrict scale = slope.typed_data() + strip.image * features;
      for (Index x = 0; x < rows * columns; ++x) {
        float* __restrict out = to + x * wide_stride;
        for (Index c = 0; c < features; ++c) {
          out[c] = given[x * features + c] + shift[c] + scale[c] * here[x * features + c];
        }
      }
      const auto line_of = [&](Index line) { return pulled.pixels(y + line); };
      multiply_lines(to, wide_stride, columns, rows, transposed, line_of, pulled.stride(), nullptr);
    };
    const auto border = [&](Index y) {  // a row of another strip, or none
      if (y < 0 || y >= shape.rows) {
        pulled.clear(y);
      } else {
        pull_rows(y, 1, gradients_here.get());
      }
    };
    const auto finish = [&](Index y) {
      filter_row(pulled, y, columns, turned.get(), padded, row_gradient.get(), stride);
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const PartGradient out{(*results[i][0])->typed_data(), sums[i].factor(which), sums[i].shift(which)};
        finish_row(parts[i], out, shape, strip.image, y, images.pixels(y), images.stride(), row_gradient.get(),
                   stride);
      }
    };

    border(strip.start - 1);
    Index ready = strip.start - 1;
    for (Index y = strip.start; y < strip.end; y += tile) {
      const Index end = std::min(y + tile, strip.end), first = (strip.image * shape.rows + y) * columns;
      float* filtered = matrix.inputs(first, filtered_here.get());
      float* gradients = matrix.gradients(first, gradients_here.get());
      for (; ready <= end; ++ready) fill_row(images, parts, shape, strip.image, ready);
      pull_rows(y, end - y, gradients);
      for (Index row = y; row < end; ++row) {
        filter_row(images, row, columns, taps.get(), padded, filtered + (row - y) * columns * stride, stride);
        add_tap_gradients(images, row, columns, pulled.pixels(row), pulled.stride(), padded, tap_sums[slot].get());
      }
      matrix.add(slot, filtered, gradients, (end - y) * columns);
      for (Index row = std::max(y - 1, strip.start); row < end - 1; ++row) finish(row);
    }
    border(strip.end);
    finish(strip.end - 1);
  });

  matrix.finish(pool, dpointwise->typed_data());
  Buffer tap(9 * padded);
  add_slots(pool, tap_sums, tap.get(), 9 * padded);
  copy_rows(tap.get(), padded, 9, channels, ddepthwise->typed_data());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].raw) continue;
    sums[i].write(shape.images, (*results[i][1])->typed_data(), (*results[i][2])->typed_data());
  }
  return ffi::Error::Success();
}

// A row of images times a matrix [C, halves * width] makes `halves` rows of the result: one for a 1x1 convolution, two
// for an upsampling, whose width is twice its features.
struct Product {
  Index channels, halves, width, features;
};

Product product_of(const Array& kernel, const Array& bias, Index halves) {
  const Index channels = kernel.dimensions()[0];
  return {channels, halves, static_cast<Index>(kernel.element_count()) / channels / halves, bias.dimensions()[0]};
}

// The columns of a kernel that make one of the rows: [C, width].
Buffer half_kernel(const float* kernel, const Product& product, Index half) {
  Buffer out(product.channels * product.width);
  for (Index c = 0; c < product.channels; ++c) {
    std::memcpy(out.get() + c * product.width, kernel + (c * product.halves + half) * product.width,
                product.width * sizeof(float));
  }
  return out;
}

ffi::Error product_forward(ffi::ThreadPool pool, Array v0, Array f0, Array s0, Array kernel, Array bias, Result out,
                           std::int64_t raw, std::int64_t halves) {
  const Shape shape = shape_of(v0);
  const Product product = product_of(kernel, bias, halves);
  const Part part = read_part(v0, f0, s0, raw & 1);
  const Index stride = stride_of(product.channels), wide = round_up(product.width), columns = shape.columns;
  Buffer start(wide);
  for (Index c = 0; c < product.width; ++c) start.get()[c] = bias.typed_data()[c % product.features];
  std::vector<Panels> panels;
  for (Index half = 0; half < halves; ++half) {
    const Buffer matrix = half_kernel(kernel.typed_data(), product, half);
    panels.emplace_back(pool, matrix.get(), product.channels, product.width, false);
  }
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index tile = choose_tile_rows(columns, product.channels, shape.rows);
  float* values = out->typed_data();
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    Buffer images(tile * columns * stride), narrow(wide == product.width ? 0 : tile * columns * wide);
    for (Index y = strip.start; y < strip.end; y += tile) {
      const Index end = std::min(y + tile, strip.end);
      for (Index row = y; row < end; ++row) {
        activate_row(part, shape, strip.image, row, images.get() + (row - y) * columns * stride, stride);
      }
      for (Index half = 0; half < halves; ++half) {
        const auto line_of = [&](Index line) {
          return values + ((strip.image * shape.rows + y + line) * halves + half) * columns * product.width;
        };
        if (wide == product.width) {
          multiply_lines(images.get(), stride, columns, end - y, panels[half], line_of, wide, start.get());
          continue;
        }
        multiply(images.get(), stride, (end - y) * columns, panels[half], narrow.get(), wide, start.get());
        for (Index line = 0; line < end - y; ++line) {
          copy_rows(narrow.get() + line * columns * wide, wide, columns, product.width, line_of(line));
        }
      }
    }
  });
  return ffi::Error::Success();
}

ffi::Error product_backward(ffi::ThreadPool pool, Array v0, Array f0, Array s0, Array kernel, Array bias,
                            Array gradient, Result dv0, Result df0, Result ds0, Result dkernel, Result dbias,
                            std::int64_t raw, std::int64_t halves) {
  const Shape shape = shape_of(v0);
  const Product product = product_of(kernel, bias, halves);
  const Part part = read_part(v0, f0, s0, raw & 1);
  const Index channels = product.channels, total = halves * product.width, columns = shape.columns;
  const Index stride = stride_of(channels), wide = round_up(total), wide_stride = stride_of(total);
  const Panels transposed(pool, kernel.typed_data(), total, channels, true);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index slots = count_slots(pool, strips.size());
  const Index tile = choose_tile_rows(columns, std::max(channels, wide), shape.rows);
  MatrixGradient matrix(pool, shape, channels, total, slots);
  std::vector<Buffer> bias_sums;
  for (Index slot = 0; slot < slots; ++slot) bias_sums.emplace_back(wide);
  ChannelSums sums(strips.size(), channels);

  over_strips(pool, strips, slots, [&](Index slot, const Strip& strip) {
    Buffer images_here(tile * columns * stride), gradients_here(tile * columns * wide_stride);
    Buffer pulled(tile * columns * stride);
    const PartGradient out{dv0->typed_data(), sums.factor(&strip - strips.data()), sums.shift(&strip - strips.data())};
    for (Index y = strip.start; y < strip.end; y += tile) {
      const Index end = std::min(y + tile, strip.end), pixels = (end - y) * columns;
      const Index first = (strip.image * shape.rows + y) * columns;
      float* images = matrix.inputs(first, images_here.get());
      float* gradients = matrix.gradients(first, gradients_here.get());
      for (Index row = y; row < end; ++row) {
        activate_row(part, shape, strip.image, row, images + (row - y) * columns * stride, stride);
        float* here = gradients + (row - y) * columns * wide_stride;
        for (Index half = 0; half < halves; ++half) {
          const float* from =
              gradient.typed_data() + ((strip.image * shape.rows + row) * halves + half) * columns * product.width;
          for (Index x = 0; x < columns; ++x) {
            std::memcpy(here + x * wide_stride + half * product.width, from + x * product.width,
                        product.width * sizeof(float));
          }
        }
        float* bias_sum = bias_sums[slot].get();
        for (Index c = 0; c < wide; c += kLanes) {
          Vector sum{};
          for (Index x = 0; x < columns; ++x) sum += load(here + x * wide_stride + c);
          store(bias_sum + c, load(bias_sum + c) + sum);
        }
      }
      multiply(gradients, wide_stride, pixels, transposed, pulled.get(), stride, nullptr);
      matrix.add(slot, images, gradients, pixels);
      for (Index row = y; row < end; ++row) {
        const Index at = (row - y) * columns * stride;
        finish_row(part, out, shape, strip.image, row, images + at, stride, pulled.get() + at, stride);
      }
    }
  });

  matrix.finish(pool, dkernel->typed_data());
  Buffer bias_total(wide);
  add_slots(pool, bias_sums, bias_total.get(), wide);
  float* out_bias = dbias->typed_data();
  std::memset(out_bias, 0, product.features * sizeof(float));
  for (Index c = 0; c < total; ++c) out_bias[c % product.features] += bias_total.get()[c];
  if (!part.raw) sums.write(shape.images, df0->typed_data(), ds0->typed_data());
  return ffi::Error::Success();
}

ffi::Error mean_forward(ffi::ThreadPool pool, Array v0, Array f0, Array s0, Result out, std::int64_t raw) {
  const Shape shape = shape_of(v0);
  const Part part = read_part(v0, f0, s0, raw & 1);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index channels = part.channels;
  std::vector<double> sums(strips.size() * channels);
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    double* total = sums.data() + (&strip - strips.data()) * channels;
    Buffer sum_here(channels);
    float* __restrict sum = sum_here.get();
    const float* __restrict factor = part.factor + strip.image * channels;
    const float* __restrict shift = part.shift + strip.image * channels;
    for (Index y = strip.start; y < strip.end; ++y) {
      const float* row = part.values + (strip.image * shape.rows + y) * shape.columns * channels;
      std::memset(sum, 0, channels * sizeof(float));
      for (Index x = 0; x < shape.columns; ++x) {
        const float* __restrict from = row + x * channels;
        for (Index c = 0; c < channels; ++c) sum[c] += part.raw ? from[c] : rectify(from[c] * factor[c] + shift[c]);
      }
      for (Index c = 0; c < channels; ++c) total[c] += sum[c];
    }
  });
  const Index strips_of_image = strips.size() / shape.images;
  const double pixels = static_cast<double>(shape.rows * shape.columns);
  for (Index image = 0; image < shape.images; ++image) {
    for (Index c = 0; c < channels; ++c) {
      double total = 0.0;
      for (Index i = 0; i < strips_of_image; ++i) total += sums[(image * strips_of_image + i) * channels + c];
      out->typed_data()[image * channels + c] = static_cast<float>(total / pixels);
    }
  }
  return ffi::Error::Success();
}

ffi::Error mean_backward(ffi::ThreadPool pool, Array v0, Array f0, Array s0, Array gradient, Result dv0, Result df0,
                         Result ds0, std::int64_t raw) {
  const Shape shape = shape_of(v0);
  const Part part = read_part(v0, f0, s0, raw & 1);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index channels = part.channels;
  ChannelSums sums(strips.size(), channels);
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    const Index which = &strip - strips.data();
    const PartGradient out{dv0->typed_data(), sums.factor(which), sums.shift(which)};
    const Index stride = stride_of(channels);
    Buffer images(shape.columns * stride), given(shape.columns * stride);
    const float share = 1.0f / static_cast<float>(shape.rows * shape.columns);
    for (Index x = 0; x < shape.columns; ++x) {
      for (Index c = 0; c < channels; ++c) {
        given.get()[x * stride + c] = gradient.typed_data()[strip.image * channels + c] * share;
      }
    }
    for (Index y = strip.start; y < strip.end; ++y) {
      activate_row(part, shape, strip.image, y, images.get(), stride);
      finish_row(part, out, shape, strip.image, y, images.get(), stride, given.get(), stride);
    }
  });
  if (!part.raw) sums.write(shape.images, df0->typed_data(), ds0->typed_data());
  return ffi::Error::Success();
}

ffi::Error pool_forward(ffi::ThreadPool pool, Array v0, Array f0, Array s0, Result out, std::int64_t raw) {
  const Shape shape = shape_of(v0);
  const Part part = read_part(v0, f0, s0, raw & 1);
  const Index channels = part.channels, columns = shape.columns / 2, stride = stride_of(channels);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows / 2, count_threads(pool));
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    Buffer upper(shape.columns * stride), lower(shape.columns * stride);
    for (Index y = strip.start; y < strip.end; ++y) {
      activate_row(part, shape, strip.image, 2 * y, upper.get(), stride);
      activate_row(part, shape, strip.image, 2 * y + 1, lower.get(), stride);
      for (Index x = 0; x < columns; ++x) {
        const float *__restrict above = upper.get() + 2 * x * stride, *__restrict below = lower.get() + 2 * x * stride;
        float* __restrict to = out->typed_data() + ((strip.image * (shape.rows / 2) + y) * columns + x) * channels;
        over_channels(channels, [&](Index c, auto kind) {
          using T = decltype(kind);
          const T top = larger(read_as<T>(above + c), read_as<T>(above + stride + c));
          write_as(to + c, larger(top, larger(read_as<T>(below + c), read_as<T>(below + stride + c))));
        });
      }
    }
  });
  return ffi::Error::Success();
}

// The first of the largest in reading order gets the gradient.
ffi::Error pool_backward(ffi::ThreadPool pool, Array v0, Array f0, Array s0, Array gradient, Result dv0, Result df0,
                         Result ds0, std::int64_t raw) {
  const Shape shape = shape_of(v0);
  const Part part = read_part(v0, f0, s0, raw & 1);
  const Index channels = part.channels, columns = shape.columns / 2, stride = stride_of(channels);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows / 2, count_threads(pool));
  ChannelSums sums(strips.size(), channels);
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    const Index which = &strip - strips.data();
    const PartGradient out{dv0->typed_data(), sums.factor(which), sums.shift(which)};
    Buffer images[2] = {Buffer(shape.columns * stride), Buffer(shape.columns * stride)};
    Buffer shares[2] = {Buffer(shape.columns * stride), Buffer(shape.columns * stride)};
    for (Index y = strip.start; y < strip.end; ++y) {
      for (Index i = 0; i < 2; ++i) activate_row(part, shape, strip.image, 2 * y + i, images[i].get(), stride);
      for (Index x = 0; x < columns; ++x) {
        const Index at = 2 * x * stride;
        const float *__restrict above = images[0].get() + at, *__restrict below = images[1].get() + at;
        float *__restrict up = shares[0].get() + at, *__restrict down = shares[1].get() + at;
        const float* __restrict given =
            gradient.typed_data() + ((strip.image * (shape.rows / 2) + y) * columns + x) * channels;
        over_channels(channels, [&](Index c, auto kind) {
          using T = decltype(kind);
          const T one = read_as<T>(above + c), two = read_as<T>(above + stride + c);
          const T three = read_as<T>(below + c), four = read_as<T>(below + stride + c);
          const T peak = larger(larger(one, two), larger(three, four)), share = read_as<T>(given + c), none{};
          write_as<T>(up + c, one == peak ? share : none);
          write_as<T>(up + stride + c, (one != peak) & (two == peak) ? share : none);
          const auto later = (one != peak) & (two != peak);
          write_as<T>(down + c, later & (three == peak) ? share : none);
          write_as<T>(down + stride + c, later & (three != peak) ? share : none);
        });
      }
      for (Index i = 0; i < 2; ++i) {
        finish_row(part, out, shape, strip.image, 2 * y + i, images[i].get(), stride, shares[i].get(), stride);
      }
    }
  });
  if (!part.raw) sums.write(shape.images, df0->typed_data(), ds0->typed_data());
  return ffi::Error::Success();
}

auto bind_reduction() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>().Arg<Array>().Arg<Array>()
      .Ret<Array>()
      .Attr<std::int64_t>("raw");
}

auto bind_reduction_backward() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
      .Ret<Array>().Ret<Array>().Ret<Array>()
      .Attr<std::int64_t>("raw");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_separable_forward, separable_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Arg<Array>().Arg<Array>()
                                  .Ret<Array>().Ret<Array>().Ret<Array>()
                                  .Attr<std::int64_t>("raw").Attr<bool>("with_moments"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_separable_backward, separable_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>()
                                  .Ret<Array>().Ret<Array>()
                                  .Attr<std::int64_t>("raw"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_product_forward, product_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<std::int64_t>("raw").Attr<std::int64_t>("halves"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_product_backward, product_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>()
                                  .Attr<std::int64_t>("raw").Attr<std::int64_t>("halves"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_mean_forward, mean_forward, bind_reduction());
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_mean_backward, mean_backward, bind_reduction_backward());
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_pool_forward, pool_forward, bind_reduction());
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_pool_backward, pool_backward, bind_reduction_backward());
