// Switches the global codes of two images with ONNX Runtime: ./switch FOLDER a.ppm b.ppm
//
// Images are binary PPM files, because reading them needs no library. docs/export.md names a program that makes such files.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <onnxruntime_cxx_api.h>
#include <unistd.h>

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr int kChannels = 3;
constexpr int kTestImages = 16;
// The most pixels that an image may have. The header of a small file can claim any number of pixels.
constexpr std::int64_t kMostPixels = std::int64_t{1} << 26;
constexpr char kUsage[] =
    "usage: ./switch FOLDER A B [--crop N], or ./switch FOLDER --check, where FOLDER has encoder.onnx and decoder.onnx, "
    "and A, B are images (binary PPM)";

// An error that `main` prints as one line.
struct Problem : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Replaces line breaks by spaces.
std::string join_lines(std::string text) {
  for (char& letter : text) {
    if (letter == '\n' || letter == '\r') letter = ' ';
  }
  return text;
}

// --- Images ---

struct Image {
  int width;
  int height;
  Bytes pixels;  // RGB, row by row
};

// Reads the next number of a PPM header, after white space and comments.
std::int64_t read_header_number(std::istream& file) {
  int letter = file.get();
  while (letter == '#' || std::isspace(letter)) {
    if (letter == '#') {
      while (letter != '\n' && letter != EOF) letter = file.get();
    } else {
      letter = file.get();
    }
  }
  std::int64_t number = 0;
  int digits = 0;
  for (; std::isdigit(letter) && digits < 9; ++digits) {
    number = 10 * number + (letter - '0');
    letter = file.get();
  }
  // PPM ends a header number with exactly one white space, behind which the pixels begin.
  if (!digits || !std::isspace(letter)) throw Problem("its header is damaged");
  return number;
}

// Reads a binary PPM file with 8 bits per value.
Image read_ppm(const std::string& path) {
  // Reading a pipe could block forever.
  if (!std::filesystem::is_regular_file(path)) throw Problem("it is no regular file");
  std::ifstream file(path, std::ios::binary);
  std::array<char, 2> kind{};
  if (!file.read(kind.data(), 2) || kind != std::array{'P', '6'}) throw Problem("it is no binary PPM file (P6)");
  const auto width = read_header_number(file), height = read_header_number(file), largest = read_header_number(file);
  if (!width || !height) throw Problem("it has no pixels");
  if (width * height > kMostPixels) {
    throw Problem("it has " + std::to_string(width * height) + " pixels; at most 2^26 are read");
  }
  if (largest != 255) throw Problem("its largest value is " + std::to_string(largest) + "; it must be 255");
  Image image{static_cast<int>(width), static_cast<int>(height), {}};
  const auto length = static_cast<std::uintmax_t>(width * height * kChannels);
  if (std::filesystem::file_size(path) < static_cast<std::uintmax_t>(file.tellg()) + length) {
    throw Problem("it ends before its last pixel");
  }
  image.pixels.resize(length);
  file.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(length));
  if (!file) throw Problem("it cannot be read to its end");
  return image;
}

// Writes a square RGB image as a binary PPM file.
void write_ppm(const std::string& path, const std::uint8_t* pixels, int size) {
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << size << ' ' << size << "\n255\n";
  file.write(reinterpret_cast<const char*>(pixels), std::streamsize{size} * size * kChannels);
  file.close();
  if (!file) throw Problem("cannot write " + path);
}

// Weights are whole multiples of 2^-22, so that the weighted sum of values up to 255 fits into 31 bits.
constexpr int kWeightBits = 22;

// The inputs of one output pixel.
struct Tap {
  int start;  // index of the first input
  std::vector<std::int32_t> weights;
};

// Computes the weights of Pillow's filter BILINEAR along one axis, for `from` input and `to` output pixels. The weights
// fall linearly to 0 over one pixel of the smaller image.
std::vector<Tap> compute_taps(int from, int to) {
  const double scale = static_cast<double>(from) / to, reach = std::max(scale, 1.0);
  std::vector<Tap> taps;
  for (int index = 0; index < to; ++index) {
    const double centre = (index + 0.5) * scale;
    const int start = std::max(0, static_cast<int>(centre - reach + 0.5));
    const int end = std::min(from, static_cast<int>(centre + reach + 0.5));
    std::vector<double> shares;
    double sum = 0;
    for (int k = 0; k < end - start; ++k) {
      shares.push_back(std::max(0.0, 1 - std::abs((start + k - centre + 0.5) * (1 / reach))));
      sum += shares.back();
    }
    Tap tap{start, {}};
    for (double share : shares) tap.weights.push_back(static_cast<std::int32_t>(0.5 + share / sum * (1 << kWeightBits)));
    taps.push_back(std::move(tap));
  }
  return taps;
}

// Applies the weights `taps` along the middle axis of an array. The input has the shape
// [lines, from_length / inner, inner]. The output has the shape [lines, taps.size(), inner], and to_length is
// taps.size() * inner.
void filter_axis(const Bytes& in, Bytes& out, const std::vector<Tap>& taps, std::size_t lines, std::size_t inner,
            std::size_t from_length, std::size_t to_length) {
  for (std::size_t line = 0; line < lines; ++line) {
    for (std::size_t index = 0; index < taps.size(); ++index) {
      for (std::size_t k = 0; k < inner; ++k) {
        std::int32_t sum = 1 << (kWeightBits - 1);
        std::size_t from = line * from_length + taps[index].start * inner + k;
        for (std::int32_t weight : taps[index].weights) {
          sum += weight * in[from];
          from += inner;
        }
        out[line * to_length + index * inner + k] = static_cast<std::uint8_t>(sum >> kWeightBits);
      }
    }
  }
}

// Resizes a square image with the same bytes as in training. An image that already has the size keeps its pixels.
Bytes resize_square(const Bytes& pixels, int side, int size) {
  if (side == size) return pixels;
  const auto taps = compute_taps(side, size);
  const std::size_t row = std::size_t{kChannels} * size;
  Bytes resized_rows(row * side), out(row * size);
  filter_axis(pixels, resized_rows, taps, side, kChannels, std::size_t{kChannels} * side, row);
  filter_axis(resized_rows, out, taps, 1, row, row * side, row * size);
  return out;
}

// Reads the centre square of an image with the same bytes as in training. A crop of 0 means the largest square.
Bytes read_square(const std::string& path, int size, int crop) {
  try {
    const Image image = read_ppm(path);
    int side = std::min(image.width, image.height);
    if (crop) side = std::min(side, crop);
    const int left = (image.width - side) / 2, top = (image.height - side) / 2;
    Bytes square;
    for (int y = top; y < top + side; ++y) {
      const auto row = image.pixels.begin() + (std::ptrdiff_t{y} * image.width + left) * kChannels;
      square.insert(square.end(), row, row + std::ptrdiff_t{side} * kChannels);
    }
    return resize_square(square, side, size);
  } catch (const std::exception& error) {
    throw Problem("cannot read the image " + path + ": " + join_lines(error.what()));
  }
}

// Returns images of smooth colour waves. All clients use these images for their check.
Bytes make_test_images(int size) {
  Bytes images;
  for (int number = 0; number < kTestImages; ++number) {
    for (int y = 0; y < size; ++y) {
      for (int x = 0; x < size; ++x) {
        const int wave = 256 * ((number % 4 + 1) * x + (number / 4 + 1) * y) / size;
        for (int channel = 0; channel < kChannels; ++channel) {
          images.push_back(static_cast<std::uint8_t>(std::min(std::abs((wave + 85 * channel) % 512 - 256), 255)));
        }
      }
    }
  }
  return images;
}

// Rounds pixels down to the lowest value of their bin. A model of fewer than 8 bits decodes to these values.
void round_to_bins(Bytes& pixels, int bin_size) {
  for (auto& value : pixels) value = static_cast<std::uint8_t>(value - value % bin_size);
}

// Returns for each image how many of its values differ after decoding.
std::vector<int> count_differences(const Bytes& images, const Bytes& decoded, int count) {
  std::vector<int> differences(count);
  const std::size_t length = images.size() / count;
  for (std::size_t i = 0; i < images.size(); ++i) differences[i / length] += images[i] != decoded[i];
  return differences;
}

// --- Models ---

// Redirects stderr to /dev/null while an object of this class exists. Debian's ONNX Runtime writes a warning there for
// each operation that it registers twice, and these warnings would hide the errors of this program.
class SilencedStderr {
 public:
  SilencedStderr() : stderr_(dup(STDERR_FILENO)) {
    const int null_device = open("/dev/null", O_WRONLY);
    dup2(null_device, STDERR_FILENO);
    close(null_device);
  }
  ~SilencedStderr() {
    dup2(stderr_, STDERR_FILENO);
    close(stderr_);
  }

 private:
  int stderr_;
};

// The outputs of the encoder for a batch of images.
struct Codes {
  std::vector<std::string> names;  // z and v, or v alone for a model without z
  std::vector<Ort::Value> values;
};

// The encoder and the decoder in a folder of ONNX files.
class Models {
 public:
  explicit Models(const std::filesystem::path& folder)
      : encoder_path_((folder / "encoder.onnx").string()),
        decoder_path_((folder / "decoder.onnx").string()),
        encoder_(open_session(encoder_path_)),
        decoder_(open_session(decoder_path_)),
        size_(read_image_size()),
        bin_size_(read_bin_size()) {}

  int size() const { return size_; }
  int bin_size() const { return bin_size_; }
  const std::string& encoder_path() const { return encoder_path_; }

  Codes encode(Bytes& images, int count) {
    const std::array<std::int64_t, 4> shape{count, size_, size_, kChannels};
    const auto input = Ort::Value::CreateTensor<std::uint8_t>(memory_, images.data(), images.size(), shape.data(), 4);
    Codes codes;
    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<const char*> names;
    for (std::size_t i = 0; i < encoder_.GetOutputCount(); ++i) {
      codes.names.emplace_back(encoder_.GetOutputNameAllocated(i, allocator).get());
    }
    for (const auto& name : codes.names) names.push_back(name.c_str());
    const char* input_name = "images";
    codes.values = encoder_.Run(Ort::RunOptions{nullptr}, &input_name, &input, 1, names.data(), names.size());
    return codes;
  }

  Bytes decode(const Codes& codes) {
    std::vector<const char*> names;
    for (const auto& name : codes.names) names.push_back(name.c_str());
    const char* output_name = "images";
    try {
      auto made = decoder_.Run(Ort::RunOptions{nullptr}, names.data(), codes.values.data(), names.size(), &output_name, 1);
      const auto length = made[0].GetTensorTypeAndShapeInfo().GetElementCount();
      const auto* first = made[0].GetTensorData<std::uint8_t>();
      return Bytes(first, first + length);
    } catch (const Ort::Exception& error) {
      throw Problem("cannot decode with " + decoder_path_ + ": " + join_lines(error.what()));
    }
  }

 private:
  Ort::Session open_session(const std::string& path) {
    const SilencedStderr silenced;
    try {
      return Ort::Session(environment_, path.c_str(), Ort::SessionOptions{});
    } catch (const Ort::Exception& error) {
      throw Problem("cannot open the model " + path + ": " + join_lines(error.what()));
    }
  }

  // Returns the side of the encoder's images in pixels. Throws Problem unless they are square RGB images.
  int read_image_size() const {
    Ort::AllocatorWithDefaultOptions allocator;
    std::string inputs = encoder_.GetInputNameAllocated(0, allocator).get();
    for (std::size_t i = 1; i < encoder_.GetInputCount(); ++i) {
      inputs += std::string(", ") + encoder_.GetInputNameAllocated(i, allocator).get();
    }
    if (inputs != "images") {
      throw Problem(encoder_path_ + " takes " + inputs + ", and this example gives images alone; client.py takes all");
    }
    const auto shape = encoder_.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    if (shape.at(1) != shape.at(2) || shape.at(3) != kChannels) {
      throw Problem(encoder_path_ + " takes images [" + std::to_string(shape[1]) + ", " + std::to_string(shape[2]) + ", " +
                    std::to_string(shape[3]) + "], and this example squares of RGB alone; client.py of the export takes all");
    }
    return static_cast<int>(shape[1]);
  }

  // Returns the size of a bin: the difference between neighbouring pixel values of the model.
  int read_bin_size() const {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto bits = encoder_.GetModelMetadata().LookupCustomMetadataMapAllocated("n_bits", allocator);
    return bits ? 256 >> std::atoi(bits.get()) : 1;
  }

  Ort::Env environment_{ORT_LOGGING_LEVEL_FATAL, "switch"};
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::string encoder_path_, decoder_path_;
  Ort::Session encoder_, decoder_;
  int size_, bin_size_;
};

// Swaps v of two images. The encoder's last output is v.
void swap_v(Codes& codes) {
  const auto length = codes.values.back().GetTensorTypeAndShapeInfo().GetElementCount();
  auto* first = codes.values.back().GetTensorMutableData<float>();
  std::swap_ranges(first, first + length / 2, first + length / 2);
}

// --- Commands ---

// Prints how many test images are decoded exactly, and returns the exit status: 0 if all are, else 5.
int check_exactness(Models& models) {
  Bytes images = make_test_images(models.size());
  round_to_bins(images, models.bin_size());
  const auto decoded = models.decode(models.encode(images, kTestImages));
  const auto differences = count_differences(images, decoded, kTestImages);
  const auto exact = std::count(differences.begin(), differences.end(), 0);
  std::cout << exact << " of " << kTestImages << " test images decode exactly\n";
  return exact == kTestImages ? 0 : 5;
}

// Writes ab.ppm (z of the first image, v of the second) and ba.ppm, and prints whether the images are decoded exactly.
int switch_images(Models& models, const std::array<std::string, 2>& paths, int crop) {
  Bytes pixels;
  for (const auto& path : paths) {
    const Bytes square = read_square(path, models.size(), crop);
    pixels.insert(pixels.end(), square.begin(), square.end());
  }
  round_to_bins(pixels, models.bin_size());
  Codes codes = models.encode(pixels, 2);
  if (codes.names != std::vector<std::string>{"z", "v"}) {
    throw Problem(models.encoder_path() + " does not encode to z and v: without z there is nothing to switch");
  }
  const std::size_t length = pixels.size() / 2;
  const auto differences = count_differences(pixels, models.decode(codes), 2);
  for (int i = 0; i < 2; ++i) {
    const auto text = std::to_string(differences[i]) + " of " + std::to_string(length) + " values differ";
    std::cout << paths[i] << ": " << (differences[i] ? text : "exactly the same") << " after decoding\n";
  }
  swap_v(codes);
  const Bytes switched = models.decode(codes);
  const std::array<std::string, 2> names{"ab.ppm", "ba.ppm"};
  for (int i = 0; i < 2; ++i) {
    write_ppm(names[i], switched.data() + i * length, models.size());
    std::cout << names[i] << ": z of " << paths[i] << ", v of " << paths[1 - i] << '\n';
  }
  return 0;
}

// Parses the arguments, runs the command, and returns the exit status.
int run_command(const std::vector<std::string>& arguments) {
  std::vector<std::string> positionals;
  bool is_check = false;
  int crop = 0;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--check") {
      is_check = true;
    } else if (arguments[i] == "--crop") {
      const std::string value = ++i < arguments.size() ? arguments[i] : "";
      if (value.empty() || value.size() > 9 || value.find_first_not_of("0123456789") != std::string::npos) {
        throw Problem("--crop is " + value + "; it must be a whole number; " + kUsage);
      }
      crop = std::stoi(value);
    } else if (arguments[i].rfind("--", 0) == 0) {
      throw Problem("there is no option " + arguments[i] + "; " + kUsage);
    } else {
      positionals.push_back(arguments[i]);
    }
  }
  if (positionals.size() != (is_check ? 1u : 3u)) throw Problem(kUsage);
  Models models(positionals[0]);
  return is_check ? check_exactness(models) : switch_images(models, {positionals[1], positionals[2]}, crop);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run_command({arguments + 1, arguments + count});
  } catch (const Problem& problem) {
    std::cerr << "error: " << problem.what() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "error: " << join_lines(error.what()) << '\n';
  }
  return 2;
}
