// Rows of images: activated, filtered by 3x3 taps, and back.

#pragma once

#include "bfloat16.h"
#include "common.h"

namespace {

// One array of a concatenation: relu(values * factor + shift), or the values themselves where `raw`.
struct Part {
  const void* values;  // float, or Bf16 where `half`
  const float *factor, *shift;
  Index channels, stored, offset;  // `stored` is 1 where one channel is spread by the factor
  bool raw, half;
};

struct Shape {
  Index images, rows, columns;
};

template <typename T>
ALWAYS_INLINE T rectify(T value) {  // keeps what is not a number
  return value < T{} ? T{} : value;
}

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
ALWAYS_INLINE T read_as(const Bf16* p) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return to_float(*p);
  } else {
    return load(p);
  }
}

ALWAYS_INLINE void write_as(float* p, float value) { *p = value; }
ALWAYS_INLINE void write_as(float* p, Vector value) { store(p, value); }
ALWAYS_INLINE void write_as(Bf16* p, float value) { put(p, value); }
ALWAYS_INLINE void write_as(Bf16* p, Vector value) { store(p, value); }

// Calls `call(float or Bf16)` for what the values of an array are.
template <typename Call>
void with_type(bool half, Call call) {
  half ? call(Bf16()) : call(0.0f);
}

// Writes a row of the activated images of a part at its channels; `out` has `stride` numbers a pixel.
template <typename T, typename Out>
void activate_row_of(const Part& part, const Shape& shape, Index image, Index y, Out* out, Index stride) {
  const T* row = static_cast<const T*>(part.values) + (image * shape.rows + y) * shape.columns * part.stored;
  const float *factor = part.factor + image * part.channels, *shift = part.shift + image * part.channels;
  for (Index x = 0; x < shape.columns; ++x) {
    const T* from = row + x * part.stored;
    Out* to = out + x * stride + part.offset;
    if (part.raw) {
      over_channels(part.channels, [&](Index c, auto kind) { write_as(to + c, read_as<decltype(kind)>(from + c)); });
    } else if (part.stored == part.channels) {
      over_channels(part.channels, [&](Index c, auto kind) {
        using V = decltype(kind);
        write_as(to + c, rectify(read_as<V>(from + c) * read_as<V>(factor + c) + read_as<V>(shift + c)));
      });
    } else {
      const float here = to_float(from[0]);
      over_channels(part.channels, [&](Index c, auto kind) {
        using V = decltype(kind);
        write_as(to + c, rectify(here * read_as<V>(factor + c) + read_as<V>(shift + c)));
      });
    }
  }
}

template <typename Out>
void activate_row(const Part& part, const Shape& shape, Index image, Index y, Out* out, Index stride) {
  with_type(part.half, [&](auto kind) { activate_row_of<decltype(kind)>(part, shape, image, y, out, stride); });
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

template <Index N, typename Out>
ALWAYS_INLINE void filter_pixels(const float* const rows[3], Index stride, const float* taps, Index padded, Out* out,
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
template <typename Out>
void filter_row(const Ring& ring, Index y, Index columns, const float* taps, Index padded, Out* out, Index stride) {
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
  void* values;           // as those of the part
  float *factor, *shift;  // sums over a strip, [channels]
};

template <typename T, typename In>
void finish_row_of(const Part& part, const PartGradient& out, const Shape& shape, Index image, Index y,
                   const In* images, Index image_stride, const float* gradient, Index stride) {
  const Index first = (image * shape.rows + y) * shape.columns * part.stored;
  const T* values = static_cast<const T*>(part.values) + first;
  const float* factor = part.factor + image * part.channels;
  T* out_values = static_cast<T*>(out.values) + first;
  images += part.offset;
  gradient += part.offset;
  if (part.raw) {
    for (Index x = 0; x < shape.columns; ++x) {
      over_channels(part.channels, [&](Index c, auto kind) {
        write_as(out_values + x * part.channels + c, read_as<decltype(kind)>(gradient + x * stride + c));
      });
    }
    return;
  }
  const bool spread = part.stored != part.channels;
  std::vector<float> totals(spread ? shape.columns : 0);
  over_channels(part.channels, [&](Index c, auto kind) {
    using V = decltype(kind);
    const V scale = read_as<V>(factor + c), none{};
    V factor_sum{}, shift_sum{};
    for (Index x = 0; x < shape.columns; ++x) {
      const V image_here = read_as<V>(images + x * image_stride + c);
      const V passed = image_here > none ? read_as<V>(gradient + x * stride + c) : none;
      shift_sum += passed;
      if (!spread) {
        factor_sum += passed * read_as<V>(values + x * part.stored + c);
        write_as(out_values + x * part.stored + c, passed * scale);
      } else {
        factor_sum += passed * to_float(values[x]);
        totals[x] += sum_lanes(passed * scale);
      }
    }
    write_as(out.factor + c, read_as<V>(out.factor + c) + factor_sum);
    write_as(out.shift + c, read_as<V>(out.shift + c) + shift_sum);
  });
  for (Index x = 0; x < static_cast<Index>(totals.size()); ++x) put(out_values + x, totals[x]);
}

// From the gradient of a row of activated images: of the values (written), of factor and shift (added up).
template <typename In>
void finish_row(const Part& part, const PartGradient& out, const Shape& shape, Index image, Index y, const In* images,
                Index image_stride, const float* gradient, Index stride) {
  with_type(part.half, [&](auto kind) {
    finish_row_of<decltype(kind)>(part, out, shape, image, y, images, image_stride, gradient, stride);
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
template <typename T>
void add_moments(const T* values, Index pixels, Index channels, Moments* moments, float* scratch) {
  float *sum = scratch, *square = scratch + channels;
  over_channels(channels, [&](Index c, auto kind) {
    using V = decltype(kind);
    const V first = read_as<V>(values + c);
    V sum_here{}, square_here{};
    for (Index p = 0; p < pixels; ++p) {
      const V from_first = read_as<V>(values + p * channels + c) - first;
      sum_here += from_first;
      square_here += from_first * from_first;
    }
    write_as(sum + c, sum_here);
    write_as(square + c, square_here);
  });
  const double n = static_cast<double>(pixels);
  for (Index c = 0; c < channels; ++c) {
    const double here = sum[c] / n;
    moments[c].add({n, to_float(values[c]) + here, square[c] - here * here * n});
  }
}

}  // namespace
