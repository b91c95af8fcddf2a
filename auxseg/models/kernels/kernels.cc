// The network's operators on a CPU, channels last; `operators.py` says what each returns and binds their gradients.
//
// A depthwise-separable convolution reads relu(values * factor + shift) of up to two arrays side by side, filters a
// few rows of it with the 3x3 taps and multiplies them by the pointwise matrix while they lie in the second-level
// cache: neither the images nor what the taps give is ever written to memory. Its gradient goes down the rows the same
// way. An upsampling is two products a row, a 1x1 convolution one. Work is split into strips of rows, strips into the
// threads of XLA's own pool; sums over strips are taken in a fixed order, so that a result is the same each time on
// one machine.
//
// Values of images and their gradients are float32 or bfloat16, each array by itself; all else is float32. Where what a
// convolution gives is bfloat16, its matrices are rounded to it before they are multiplied (`bfloat16.h`).

#include "bfloat16.h"
#include "images.h"
#include "products.h"

namespace {

using Values = ffi::AnyBuffer;  // of images: float32 or bfloat16
using ValuesResult = ffi::Result<Values>;

bool is_half(const Values& values) { return values.element_type() == ffi::BF16; }

// Calls `call(float or Bf16)` for what the products of an operator are of.
template <typename Call>
ffi::Error with_products(const Values& values, Call call) {
  if (!is_half(values)) {
    call(0.0f);
    return ffi::Error::Success();
  }
#if defined(__AVX512BF16__)
  call(Bf16());
  return ffi::Error::Success();
#else
  return ffi::Error::InvalidArgument("this processor multiplies no bfloat16");
#endif
}

Part read_part(const Values& values, const Array& factor, const Array& shift, bool raw, Index offset = 0) {
  const Index stored = values.dimensions()[3], channels = raw ? stored : factor.dimensions()[1];
  return {values.untyped_data(), factor.typed_data(), shift.typed_data(), channels, stored, offset, raw, is_half(values)};
}

// One or two: the second may have no channels.
std::vector<Part> read_parts(const Values& v0, const Array& f0, const Array& s0, const Values& v1, const Array& f1,
                             const Array& s1, Index raw) {
  std::vector<Part> parts = {read_part(v0, f0, s0, raw & 1)};
  const Part second = read_part(v1, f1, s1, raw & 2, parts[0].channels);
  if (second.channels) parts.push_back(second);
  return parts;
}

Shape shape_of(const Values& values) {
  const auto sizes = values.dimensions();
  return {sizes[0], sizes[1], sizes[2]};
}

Buffer pad_rows(const float* from, Index rows, Index columns, Index padded, bool reversed) {
  Buffer out(rows * padded);
  for (Index row = 0; row < rows; ++row) {
    const Index source = reversed ? rows - 1 - row : row;
    std::memcpy(out.get() + row * padded, from + source * columns, columns * sizeof(float));
  }
  return out;
}

// As many as lie in the cache; of bfloat16 also as many as its products need to run at their speed.
template <typename T>
Index choose_tile_rows(Index columns, Index channels, Index most) {
  const Index least = sizeof(T) == sizeof(float) ? 1 : (kBusyPixels + columns - 1) / columns;
  return std::max<Index>(1, std::min(most, std::max(least, kTileFloats / (columns * channels))));
}

// For the pixels of a tile, with the slack that products may read behind it.
template <typename T>
BufferOf<T> create_tile(Index pixels, Index stride) {
  return BufferOf<T>((pixels + (sizeof(T) == sizeof(float) ? 0 : kStep<T>)) * stride);
}

// The last axis of `to` may be narrower than the rows of `from`.
void copy_rows(const float* from, Index stride, Index rows, Index columns, float* to) {
  for (Index row = 0; row < rows; ++row) std::memcpy(to + row * columns, from + row * stride, columns * sizeof(float));
}

template <typename T>
void convolve(ffi::ThreadPool& pool, const Shape& shape, const std::vector<Part>& parts, const Array& depthwise,
              const Array& pointwise, const std::vector<Strip>& strips, T* values, Moments* moments) {
  const Index channels = pointwise.dimensions()[0], features = pointwise.dimensions()[1], columns = shape.columns;
  const Index padded = round_up<T>(channels), stride = stride_of<T>(channels);
  const Buffer taps = pad_rows(depthwise.typed_data(), 9, channels, padded, false);
  const Matrix<T> matrix(pool, pointwise.typed_data(), channels, features, false);
  const Index tile = choose_tile_rows<T>(columns, padded, shape.rows);
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    const Index which = &strip - strips.data();
    const Ring ring(3, columns, padded);
    const BufferOf<T> filtered = create_tile<T>(tile * columns, stride);
    const Buffer scratch(2 * features);
    Index ready = strip.start - 1;  // the next row of images to make
    for (Index y = strip.start; y < strip.end; y += tile) {
      const Index end = std::min(y + tile, strip.end), pixels = (end - y) * columns;
      for (Index row = y; row < end; ++row) {
        for (; ready <= row + 1; ++ready) fill_row(ring, parts, shape, strip.image, ready);
        filter_row(ring, row, columns, taps.get(), padded, filtered.get() + (row - y) * columns * stride, stride);
      }
      T* to = values + (strip.image * shape.rows + y) * columns * features;
      multiply_lines(filtered.get(), stride, pixels, std::vector<T*>{to}, matrix, features, nullptr);
      if (moments) add_moments(to, pixels, features, moments + which * features, scratch.get());
    }
  });
}

ffi::Error separable_forward(ffi::ThreadPool pool, Values v0, Array f0, Array s0, Values v1, Array f1, Array s1,
                             Array depthwise, Array pointwise, ValuesResult out, Result mean, Result variance,
                             std::int64_t raw, bool with_moments) {
  const Shape shape = shape_of(v0);
  const Index features = pointwise.dimensions()[1];
  const std::vector<Part> parts = read_parts(v0, f0, s0, v1, f1, s1, raw);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  std::vector<Moments> moments(strips.size() * features);
  const ffi::Error done = with_products(*out, [&](auto kind) {
    convolve(pool, shape, parts, depthwise, pointwise, strips, static_cast<decltype(kind)*>(out->untyped_data()),
             with_moments ? moments.data() : nullptr);
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
  return done;
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
template <typename T>
class MatrixGradient {
 public:
  MatrixGradient(ffi::ThreadPool& pool, const Shape& shape, Index channels, Index features, Index slots)
      : channels_(channels), features_(features), wide_(round_up<T>(features)), stride_(stride_of<T>(channels)),
        wide_stride_(stride_of<T>(features)), pixels_(shape.images * shape.rows * shape.columns),
        kept_(slots > 1 && channels * features >= kLargeMatrix) {
    if (kept_) {
      const bool padded = sizeof(T) != sizeof(float);  // products of bfloat16 read the padding, which must be zeros
      inputs_ = BufferOf<T>((pixels_ + kStep<T>) * stride_, padded);
      gradients_ = BufferOf<T>((pixels_ + kStep<T>) * wide_stride_, padded);
    }
    for (Index slot = 0; !kept_ && slot < slots; ++slot) sums_.emplace_back(round_up<T>(channels) * wide_);
  }

  // Where a tile that begins at pixel `first` is to be written: `here`, unless it is kept.
  T* inputs(Index first, T* here) const { return kept_ ? inputs_.get() + first * stride_ : here; }
  T* gradients(Index first, T* here) const { return kept_ ? gradients_.get() + first * wide_stride_ : here; }

  void add(Index slot, const T* inputs, const T* gradients, Index pixels) const {
    if (kept_) return;
    add_outer(inputs, stride_, channels_, gradients, wide_stride_, wide_, pixels, sums_[slot].get(), wide_);
  }

  void finish(ffi::ThreadPool& pool, float* out) const {
    const bool fits = wide_ == features_ && round_up<T>(channels_) == channels_;
    const Buffer padded(fits ? 0 : round_up<T>(channels_) * wide_);
    float* total = fits ? out : padded.get();
    if (kept_) {
      multiply_kept(pool, total);
    } else {
      add_slots(pool, sums_, total, channels_ * wide_);
    }
    if (!fits) copy_rows(total, wide_, channels_, features_, out);
  }

 private:
  static constexpr Index kLargeMatrix = 96 * 1024, kKeptPixels = 128;
  static constexpr Index kGroup = sizeof(T) == sizeof(float) ? kRows : kStep<T>;

  void multiply_kept(ffi::ThreadPool& pool, float* out) const {
    const Index groups = (channels_ + kGroup - 1) / kGroup, pieces = std::min(count_threads(pool), groups);
    parallel_for(pool, pieces, [&](Index piece) {
      const Index start = groups * piece / pieces * kGroup;
      const Index end = std::min(groups * (piece + 1) / pieces * kGroup, channels_);
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
  BufferOf<T> inputs_, gradients_;
  std::vector<Buffer> sums_;
};

struct SeparableGradients {
  void* values[2];
  float *factor[2], *shift[2], *depthwise, *pointwise;
};

template <typename T>
void pull_convolution(ffi::ThreadPool& pool, const Shape& shape, const std::vector<Part>& parts, const Array& depthwise,
                      const Array& pointwise, const T* values, const T* gradient, const Array& constant,
                      const Array& slope, const SeparableGradients& out) {
  const Index channels = pointwise.dimensions()[0], features = pointwise.dimensions()[1];
  const Index padded = round_up<T>(channels), wide = round_up<T>(features);
  const Index stride = stride_of<T>(channels), wide_stride = stride_of<T>(features);
  const Buffer taps = pad_rows(depthwise.typed_data(), 9, channels, padded, false);
  const Buffer turned = pad_rows(depthwise.typed_data(), 9, channels, padded, true);
  const Matrix<T> transposed(pool, pointwise.typed_data(), features, channels, true);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index slots = count_slots(pool, strips.size()), columns = shape.columns;
  const Index tile = choose_tile_rows<T>(columns, std::max(padded, wide), shape.rows);
  MatrixGradient<T> matrix(pool, shape, channels, features, slots);
  std::vector<Buffer> tap_sums;
  for (Index slot = 0; slot < slots; ++slot) tap_sums.emplace_back(9 * padded);
  std::vector<ChannelSums> sums;
  for (const Part& part : parts) sums.emplace_back(strips.size(), part.channels);

  over_strips(pool, strips, slots, [&](Index slot, const Strip& strip) {
    const Index which = &strip - strips.data();
    const Ring images(tile + 2, columns, padded), pulled(tile + 2, columns, padded);
    const BufferOf<T> filtered_here = create_tile<T>(tile * columns, stride);
    const BufferOf<T> gradients_here = create_tile<T>(tile * columns, wide_stride);
    const Buffer row_gradient(columns * images.stride());

    // The gradient of rows of values, with what mean and variance add, and of the filtered images.
    const auto pull_rows = [&](Index y, Index rows, T* to) {
      const Index start = (strip.image * shape.rows + y) * columns * features;
      const T *given = gradient + start, *here = values + start;
      const float* shift = constant.typed_data() + strip.image * features;
      const float* scale = slope.typed_data() + strip.image * features;
      for (Index x = 0; x < rows * columns; ++x) {
        over_channels(features, [&](Index c, auto kind) {
          using V = decltype(kind);
          const V value = read_as<V>(here + x * features + c), passed = read_as<V>(given + x * features + c);
          write_as(to + x * wide_stride + c, passed + read_as<V>(shift + c) + read_as<V>(scale + c) * value);
        });
      }
      std::vector<float*> lines;
      for (Index line = 0; line < rows; ++line) lines.push_back(pulled.pixels(y + line));
      multiply_lines(to, wide_stride, columns, lines, transposed, pulled.stride(), nullptr);
    };
    const auto border = [&](Index y) {  // a row of another strip, or none
      if (y < 0 || y >= shape.rows) {
        pulled.clear(y);
      } else {
        pull_rows(y, 1, gradients_here.get());
      }
    };
    const auto finish = [&](Index y) {
      filter_row(pulled, y, columns, turned.get(), padded, row_gradient.get(), images.stride());
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const PartGradient here{out.values[i], sums[i].factor(which), sums[i].shift(which)};
        finish_row(parts[i], here, shape, strip.image, y, images.pixels(y), images.stride(), row_gradient.get(),
                   images.stride());
      }
    };

    border(strip.start - 1);
    Index ready = strip.start - 1;
    for (Index y = strip.start; y < strip.end; y += tile) {
      const Index end = std::min(y + tile, strip.end), first = (strip.image * shape.rows + y) * columns;
      T* filtered = matrix.inputs(first, filtered_here.get());
      T* gradients = matrix.gradients(first, gradients_here.get());
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

  matrix.finish(pool, out.pointwise);
  const Buffer tap(9 * padded);
  add_slots(pool, tap_sums, tap.get(), 9 * padded);
  copy_rows(tap.get(), padded, 9, channels, out.depthwise);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i].raw) sums[i].write(shape.images, out.factor[i], out.shift[i]);
  }
}

ffi::Error separable_backward(ffi::ThreadPool pool, Values v0, Array f0, Array s0, Values v1, Array f1, Array s1,
                              Array depthwise, Array pointwise, Values values, Values gradient, Array constant,
                              Array slope, ValuesResult dv0, Result df0, Result ds0, ValuesResult dv1, Result df1,
                              Result ds1, Result ddepthwise, Result dpointwise, std::int64_t raw) {
  const std::vector<Part> parts = read_parts(v0, f0, s0, v1, f1, s1, raw);
  const SeparableGradients out{{dv0->untyped_data(), dv1->untyped_data()}, {df0->typed_data(), df1->typed_data()},
                               {ds0->typed_data(), ds1->typed_data()}, ddepthwise->typed_data(),
                               dpointwise->typed_data()};
  return with_products(values, [&](auto kind) {
    using T = decltype(kind);
    pull_convolution(pool, shape_of(v0), parts, depthwise, pointwise, static_cast<const T*>(values.untyped_data()),
                     static_cast<const T*>(gradient.untyped_data()), constant, slope, out);
  });
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

template <typename T>
void multiply_images(ffi::ThreadPool& pool, const Shape& shape, const Part& part, const Product& product,
                     const float* kernel, const float* bias, T* values) {
  const Index stride = stride_of<T>(product.channels), columns = shape.columns, halves = product.halves;
  const Buffer start(round_up(product.width));
  for (Index c = 0; c < product.width; ++c) start.get()[c] = bias[c % product.features];
  std::vector<Matrix<T>> matrices;
  for (Index half = 0; half < halves; ++half) {
    const Buffer matrix = half_kernel(kernel, product, half);
    matrices.emplace_back(pool, matrix.get(), product.channels, product.width, false);
  }
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index tile = choose_tile_rows<T>(columns, product.channels, shape.rows);
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    const BufferOf<T> images = create_tile<T>(tile * columns, stride);
    for (Index y = strip.start; y < strip.end; y += tile) {
      const Index end = std::min(y + tile, strip.end);
      for (Index row = y; row < end; ++row) {
        activate_row(part, shape, strip.image, row, images.get() + (row - y) * columns * stride, stride);
      }
      for (Index half = 0; half < halves; ++half) {
        std::vector<T*> lines;
        for (Index row = y; row < end; ++row) {
          lines.push_back(values + ((strip.image * shape.rows + row) * halves + half) * columns * product.width);
        }
        multiply_lines(images.get(), stride, columns, lines, matrices[half], product.width, start.get());
      }
    }
  });
}

ffi::Error product_forward(ffi::ThreadPool pool, Values v0, Array f0, Array s0, Array kernel, Array bias,
                           ValuesResult out, std::int64_t raw, std::int64_t halves) {
  const Part part = read_part(v0, f0, s0, raw & 1);
  return with_products(*out, [&](auto kind) {
    multiply_images(pool, shape_of(v0), part, product_of(kernel, bias, halves), kernel.typed_data(), bias.typed_data(),
                    static_cast<decltype(kind)*>(out->untyped_data()));
  });
}

struct ProductGradients {
  void* values;
  float *factor, *shift, *kernel, *bias;
};

template <typename T>
void pull_images(ffi::ThreadPool& pool, const Shape& shape, const Part& part, const Product& product,
                 const float* kernel, const T* gradient, const ProductGradients& out) {
  const Index channels = product.channels, halves = product.halves, total = halves * product.width;
  const Index stride = stride_of<T>(channels), wide = round_up<T>(total), wide_stride = stride_of<T>(total);
  const Index columns = shape.columns, pulled_stride = stride_of(channels);
  const Matrix<T> transposed(pool, kernel, total, channels, true);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index slots = count_slots(pool, strips.size());
  const Index tile = choose_tile_rows<T>(columns, std::max(channels, wide), shape.rows);
  MatrixGradient<T> matrix(pool, shape, channels, total, slots);
  std::vector<Buffer> bias_sums;
  for (Index slot = 0; slot < slots; ++slot) bias_sums.emplace_back(wide);
  ChannelSums sums(strips.size(), channels);

  over_strips(pool, strips, slots, [&](Index slot, const Strip& strip) {
    const BufferOf<T> images_here = create_tile<T>(tile * columns, stride);
    const BufferOf<T> gradients_here = create_tile<T>(tile * columns, wide_stride);
    const Buffer pulled(tile * columns * pulled_stride);
    const Index which = &strip - strips.data();
    const PartGradient found{out.values, sums.factor(which), sums.shift(which)};
    for (Index y = strip.start; y < strip.end; y += tile) {
      const Index end = std::min(y + tile, strip.end), pixels = (end - y) * columns;
      const Index first = (strip.image * shape.rows + y) * columns;
      T* images = matrix.inputs(first, images_here.get());
      T* gradients = matrix.gradients(first, gradients_here.get());
      for (Index row = y; row < end; ++row) {
        activate_row(part, shape, strip.image, row, images + (row - y) * columns * stride, stride);
        T* here = gradients + (row - y) * columns * wide_stride;
        for (Index half = 0; half < halves; ++half) {
          const T* from = gradient + ((strip.image * shape.rows + row) * halves + half) * columns * product.width;
          for (Index x = 0; x < columns; ++x) {
            std::memcpy(here + x * wide_stride + half * product.width, from + x * product.width,
                        product.width * sizeof(T));
          }
        }
        float* bias_sum = bias_sums[slot].get();
        for (Index c = 0; c < wide; c += kLanes) {
          Vector sum{};
          for (Index x = 0; x < columns; ++x) sum += load(here + x * wide_stride + c);
          store(bias_sum + c, load(bias_sum + c) + sum);
        }
      }
      const std::vector<float*> lines{pulled.get()};
      multiply_lines(gradients, wide_stride, pixels, lines, transposed, pulled_stride, nullptr);
      matrix.add(slot, images, gradients, pixels);
      for (Index row = y; row < end; ++row) {
        const Index at = (row - y) * columns;
        finish_row(part, found, shape, strip.image, row, images + at * stride, stride,
                   pulled.get() + at * pulled_stride, pulled_stride);
      }
    }
  });

  matrix.finish(pool, out.kernel);
  const Buffer bias_total(wide);
  add_slots(pool, bias_sums, bias_total.get(), wide);
  std::memset(out.bias, 0, product.features * sizeof(float));
  for (Index c = 0; c < total; ++c) out.bias[c % product.features] += bias_total.get()[c];
  if (!part.raw) sums.write(shape.images, out.factor, out.shift);
}

ffi::Error product_backward(ffi::ThreadPool pool, Values v0, Array f0, Array s0, Array kernel, Array bias,
                            Values gradient, ValuesResult dv0, Result df0, Result ds0, Result dkernel, Result dbias,
                            std::int64_t raw, std::int64_t halves) {
  const Part part = read_part(v0, f0, s0, raw & 1);
  const ProductGradients out{dv0->untyped_data(), df0->typed_data(), ds0->typed_data(), dkernel->typed_data(),
                             dbias->typed_data()};
  return with_products(gradient, [&](auto kind) {
    pull_images(pool, shape_of(v0), part, product_of(kernel, bias, halves), kernel.typed_data(),
                static_cast<const decltype(kind)*>(gradient.untyped_data()), out);
  });
}

// The sum of a row of activated images, for each channel.
template <typename T>
void sum_row(const Part& part, const Shape& shape, Index image, Index y, float* sum) {
  const Index channels = part.channels;
  const T* row = static_cast<const T*>(part.values) + (image * shape.rows + y) * shape.columns * channels;
  const float *factor = part.factor + image * channels, *shift = part.shift + image * channels;
  over_channels(channels, [&](Index c, auto kind) {
    using V = decltype(kind);
    V total{};
    if (part.raw) {
      for (Index x = 0; x < shape.columns; ++x) total += read_as<V>(row + x * channels + c);
    } else {
      const V scale = read_as<V>(factor + c), offset = read_as<V>(shift + c);
      for (Index x = 0; x < shape.columns; ++x) {
        total += rectify(read_as<V>(row + x * channels + c) * scale + offset);
      }
    }
    write_as(sum + c, total);
  });
}

ffi::Error mean_forward(ffi::ThreadPool pool, Values v0, Array f0, Array s0, Result out, std::int64_t raw) {
  const Shape shape = shape_of(v0);
  const Part part = read_part(v0, f0, s0, raw & 1);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index channels = part.channels;
  std::vector<double> sums(strips.size() * channels);
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    double* total = sums.data() + (&strip - strips.data()) * channels;
    const Buffer sum(channels);
    for (Index y = strip.start; y < strip.end; ++y) {
      with_type(part.half, [&](auto kind) { sum_row<decltype(kind)>(part, shape, strip.image, y, sum.get()); });
      for (Index c = 0; c < channels; ++c) total[c] += sum.get()[c];
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

ffi::Error mean_backward(ffi::ThreadPool pool, Values v0, Array f0, Array s0, Array gradient, ValuesResult dv0,
                         Result df0, Result ds0, std::int64_t raw) {
  const Shape shape = shape_of(v0);
  const Part part = read_part(v0, f0, s0, raw & 1);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows, count_threads(pool));
  const Index channels = part.channels;
  ChannelSums sums(strips.size(), channels);
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    const Index which = &strip - strips.data();
    const PartGradient out{dv0->untyped_data(), sums.factor(which), sums.shift(which)};
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

template <typename T>
void take_largest(ffi::ThreadPool& pool, const Shape& shape, const Part& part, T* out) {
  const Index channels = part.channels, columns = shape.columns / 2, stride = stride_of(channels);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows / 2, count_threads(pool));
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    Buffer upper(shape.columns * stride), lower(shape.columns * stride);
    for (Index y = strip.start; y < strip.end; ++y) {
      activate_row(part, shape, strip.image, 2 * y, upper.get(), stride);
      activate_row(part, shape, strip.image, 2 * y + 1, lower.get(), stride);
      for (Index x = 0; x < columns; ++x) {
        const float *__restrict above = upper.get() + 2 * x * stride, *__restrict below = lower.get() + 2 * x * stride;
        T* to = out + ((strip.image * (shape.rows / 2) + y) * columns + x) * channels;
        over_channels(channels, [&](Index c, auto kind) {
          using V = decltype(kind);
          const V top = larger(read_as<V>(above + c), read_as<V>(above + stride + c));
          write_as(to + c, larger(top, larger(read_as<V>(below + c), read_as<V>(below + stride + c))));
        });
      }
    }
  });
}

ffi::Error pool_forward(ffi::ThreadPool pool, Values v0, Array f0, Array s0, ValuesResult out, std::int64_t raw) {
  const Part part = read_part(v0, f0, s0, raw & 1);
  with_type(is_half(*out), [&](auto kind) {
    take_largest(pool, shape_of(v0), part, static_cast<decltype(kind)*>(out->untyped_data()));
  });
  return ffi::Error::Success();
}

// The first of the largest in reading order gets the gradient.
template <typename T>
void pull_largest(ffi::ThreadPool& pool, const Shape& shape, const Part& part, const T* gradient, void* values,
                  float* factor, float* shift) {
  const Index channels = part.channels, columns = shape.columns / 2, stride = stride_of(channels);
  const std::vector<Strip> strips = cut_strips(shape.images, shape.rows / 2, count_threads(pool));
  ChannelSums sums(strips.size(), channels);
  over_strips(pool, strips, count_slots(pool, strips.size()), [&](Index, const Strip& strip) {
    const Index which = &strip - strips.data();
    const PartGradient out{values, sums.factor(which), sums.shift(which)};
    Buffer images[2] = {Buffer(shape.columns * stride), Buffer(shape.columns * stride)};
    Buffer shares[2] = {Buffer(shape.columns * stride), Buffer(shape.columns * stride)};
    for (Index y = strip.start; y < strip.end; ++y) {
      for (Index i = 0; i < 2; ++i) activate_row(part, shape, strip.image, 2 * y + i, images[i].get(), stride);
      for (Index x = 0; x < columns; ++x) {
        const Index at = 2 * x * stride;
        const float *__restrict above = images[0].get() + at, *__restrict below = images[1].get() + at;
        float *__restrict up = shares[0].get() + at, *__restrict down = shares[1].get() + at;
        const T* given =
            gradient + ((strip.image * (shape.rows / 2) + y) * columns + x) * channels;
        over_channels(channels, [&](Index c, auto kind) {
          using V = decltype(kind);
          const V one = read_as<V>(above + c), two = read_as<V>(above + stride + c);
          const V three = read_as<V>(below + c), four = read_as<V>(below + stride + c);
          const V peak = larger(larger(one, two), larger(three, four)), share = read_as<V>(given + c), none{};
          write_as(up + c, one == peak ? share : none);
          write_as(up + stride + c, (one != peak) & (two == peak) ? share : none);
          const auto later = (one != peak) & (two != peak);
          write_as(down + c, later & (three == peak) ? share : none);
          write_as(down + stride + c, later & (three != peak) ? share : none);
        });
      }
      for (Index i = 0; i < 2; ++i) {
        finish_row(part, out, shape, strip.image, 2 * y + i, images[i].get(), stride, shares[i].get(), stride);
      }
    }
  });
  if (!part.raw) sums.write(shape.images, factor, shift);
}

ffi::Error pool_backward(ffi::ThreadPool pool, Values v0, Array f0, Array s0, Values gradient, ValuesResult dv0,
                         Result df0, Result ds0, std::int64_t raw) {
  const Part part = read_part(v0, f0, s0, raw & 1);
  with_type(is_half(gradient), [&](auto kind) {
    pull_largest(pool, shape_of(v0), part, static_cast<const decltype(kind)*>(gradient.untyped_data()),
                 dv0->untyped_data(), df0->typed_data(), ds0->typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace

// What multiplies bfloat16 from now on: `most` (0 none, 1 vdpbf16ps, 2 AMX) or the best there is below it; returned.
extern "C" int auxseg_choose_unit(int most) { return unit = std::min(most, find_unit()); }

#define SIGNAL Arg<Values>().Arg<Array>().Arg<Array>()
#define SIGNAL_GRADIENT Ret<Values>().Ret<Array>().Ret<Array>()
#define BIND ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_separable_forward, separable_forward,
                              BIND.SIGNAL.SIGNAL.Arg<Array>().Arg<Array>()
                                  .Ret<Values>().Ret<Array>().Ret<Array>()
                                  .Attr<std::int64_t>("raw").Attr<bool>("with_moments"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_separable_backward, separable_backward,
                              BIND.SIGNAL.SIGNAL.Arg<Array>().Arg<Array>()
                                  .Arg<Values>().Arg<Values>().Arg<Array>().Arg<Array>()
                                  .SIGNAL_GRADIENT.SIGNAL_GRADIENT.Ret<Array>().Ret<Array>()
                                  .Attr<std::int64_t>("raw"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_product_forward, product_forward,
                              BIND.SIGNAL.Arg<Array>().Arg<Array>()
                                  .Ret<Values>()
                                  .Attr<std::int64_t>("raw").Attr<std::int64_t>("halves"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_product_backward, product_backward,
                              BIND.SIGNAL.Arg<Array>().Arg<Array>().Arg<Values>()
                                  .SIGNAL_GRADIENT.Ret<Array>().Ret<Array>()
                                  .Attr<std::int64_t>("raw").Attr<std::int64_t>("halves"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_mean_forward, mean_forward,
                              BIND.SIGNAL.Ret<Array>().Attr<std::int64_t>("raw"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_mean_backward, mean_backward,
                              BIND.SIGNAL.Arg<Array>().SIGNAL_GRADIENT.Attr<std::int64_t>("raw"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_pool_forward, pool_forward,
                              BIND.SIGNAL.Ret<Values>().Attr<std::int64_t>("raw"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(auxseg_pool_backward, pool_backward,
                              BIND.SIGNAL.Arg<Values>().SIGNAL_GRADIENT.Attr<std::int64_t>("raw"));
