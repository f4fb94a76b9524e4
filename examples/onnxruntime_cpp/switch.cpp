// Switches the global codes of two images with ONNX Runtime: ./switch FOLDER a.ppm b.ppm
//
// Images are binary PPM files, which need no library; README.md says what makes them.

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
constexpr int kKnownImages = 16;
// Pixels that a file may have: a small one can claim any number.
constexpr std::int64_t kMostPixels = std::int64_t{1} << 27;
constexpr char kUsage[] =
    "usage: ./switch FOLDER A B [--crop N], or ./switch FOLDER --check, where FOLDER has encoder.onnx and decoder.onnx, "
    "and A, B are images (binary PPM)";

// What the user is told, in one line.
struct Problem : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string one_line(std::string text) {
  for (char& letter : text) {
    if (letter == '\n' || letter == '\r') letter = ' ';
  }
  return text;
}

// --- images ---

struct Picture {
  int width;
  int height;
  Bytes pixels;  // RGB, row by row
};

// Reads the next number of a PPM header, after white space and comments.
std::int64_t header_number(std::istream& file) {
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
  // One white space ends a number.
  if (!digits || !std::isspace(letter)) throw Problem("its header is damaged");
  return number;
}

Picture read_ppm(const std::string& path) {
  // A pipe would be waited for without an end.
  if (!std::filesystem::is_regular_file(path)) throw Problem("it is no regular file");
  std::ifstream file(path, std::ios::binary);
  std::array<char, 2> kind{};
  if (!file.read(kind.data(), 2) || kind != std::array{'P', '6'}) throw Problem("it is no binary PPM file (P6)");
  const auto width = header_number(file), height = header_number(file), largest = header_number(file);
  if (!width || !height) throw Problem("it has no pixels");
  if (width * height > kMostPixels) {
    throw Problem("it has " + std::to_string(width * height) + " pixels; at most 2^27 are read");
  }
  if (largest != 255) throw Problem("its largest value is " + std::to_string(largest) + "; it must be 255");
  Picture picture{static_cast<int>(width), static_cast<int>(height), {}};
  const auto length = static_cast<std::uintmax_t>(width * height * kChannels);
  if (std::filesystem::file_size(path) < static_cast<std::uintmax_t>(file.tellg()) + length) {
    throw Problem("it ends before its last pixel");
  }
  picture.pixels.resize(length);
  file.read(reinterpret_cast<char*>(picture.pixels.data()), static_cast<std::streamsize>(length));
  if (!file) throw Problem("it cannot be read to its end");
  return picture;
}

void write_ppm(const std::string& path, const std::uint8_t* pixels, int size) {
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << size << ' ' << size << "\n255\n";
  file.write(reinterpret_cast<const char*>(pixels), std::streamsize{size} * size * kChannels);
  file.close();
  if (!file) throw Problem("cannot write " + path);
}

// Where the inputs of an output begin, and what they weigh: whole multiples of 2^-22.
struct Tap {
  int start;
  std::vector<std::int32_t> weights;
};

constexpr int kBits = 22;

// The filter BILINEAR of Pillow, in its own integers: a triangle as wide as two pixels of the smaller of two pictures.
std::vector<Tap> bilinear_taps(int from, int to) {
  const double scale = static_cast<double>(from) / to, reach = std::max(scale, 1.0);
  std::vector<Tap> taps;
  for (int place = 0; place < to; ++place) {
    const double centre = (place + 0.5) * scale;
    const int start = std::max(0, static_cast<int>(centre - reach + 0.5));
    const int end = std::min(from, static_cast<int>(centre + reach + 0.5));
    std::vector<double> shares;
    double sum = 0;
    for (int k = 0; k < end - start; ++k) {
      shares.push_back(std::max(0.0, 1 - std::abs((start + k - centre + 0.5) * (1 / reach))));
      sum += shares.back();
    }
    Tap tap{start, {}};
    for (double share : shares) tap.weights.push_back(static_cast<std::int32_t>(0.5 + share / sum * (1 << kBits)));
    taps.push_back(std::move(tap));
  }
  return taps;
}

// Filters each of some lines: its inputs are `inner` values wide and lie one behind the other, and so do its outputs.
void filter(const Bytes& in, Bytes& out, const std::vector<Tap>& taps, std::size_t lines, std::size_t inner,
            std::size_t from_length, std::size_t to_length) {
  for (std::size_t line = 0; line < lines; ++line) {
    for (std::size_t place = 0; place < taps.size(); ++place) {
      for (std::size_t k = 0; k < inner; ++k) {
        std::int32_t sum = 1 << (kBits - 1);
        std::size_t at = line * from_length + taps[place].start * inner + k;
        for (std::int32_t weight : taps[place].weights) {
          sum += weight * in[at];
          at += inner;
        }
        out[line * to_length + place * inner + k] = static_cast<std::uint8_t>(sum >> kBits);
      }
    }
  }
}

// Resizes a square picture to the byte as the training images were; one of the right size stays as it is.
Bytes resize_square(const Bytes& pixels, int side, int size) {
  if (side == size) return pixels;
  const auto taps = bilinear_taps(side, size);
  const std::size_t row = std::size_t{kChannels} * size;
  Bytes narrow(row * side), out(row * size);
  filter(pixels, narrow, taps, side, kChannels, std::size_t{kChannels} * side, row);
  filter(narrow, out, taps, 1, row, row * side, row * size);
  return out;
}

// Reads the centre square of an image, made as the training images were; `crop` 0 takes the largest.
Bytes read_square(const std::string& path, int size, int crop) {
  try {
    const Picture picture = read_ppm(path);
    int side = std::min(picture.width, picture.height);
    if (crop) side = std::min(side, crop);
    const int left = (picture.width - side) / 2, top = (picture.height - side) / 2;
    Bytes square;
    for (int y = top; y < top + side; ++y) {
      const auto row = picture.pixels.begin() + (std::ptrdiff_t{y} * picture.width + left) * kChannels;
      square.insert(square.end(), row, row + std::ptrdiff_t{side} * kChannels);
    }
    return resize_square(square, side, size);
  } catch (const std::exception& error) {
    throw Problem("cannot read the image " + path + ": " + one_line(error.what()));
  }
}

// Images of smooth colour waves, the same for every client and machine.
Bytes known_images(int size) {
  Bytes images;
  for (int number = 0; number < kKnownImages; ++number) {
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

// Rounds pixels down to multiples of the step between levels.
void to_levels(Bytes& pixels, int step) {
  for (auto& value : pixels) value = static_cast<std::uint8_t>(value - value % step);
}

// How many values of each image differ.
std::vector<int> lost_values(const Bytes& images, const Bytes& back, int count) {
  std::vector<int> lost(count);
  const std::size_t length = images.size() / count;
  for (std::size_t i = 0; i < images.size(); ++i) lost[i / length] += images[i] != back[i];
  return lost;
}

// --- the models ---

// Keeps the library from writing to stderr: Debian's names there each operation that it registers twice.
class Quiet {
 public:
  Quiet() : stderr_(dup(STDERR_FILENO)) {
    const int nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, STDERR_FILENO);
    close(nowhere);
  }
  ~Quiet() {
    dup2(stderr_, STDERR_FILENO);
    close(stderr_);
  }

 private:
  int stderr_;
};

struct Codes {
  std::vector<std::string> names;  // z and v, or v alone
  std::vector<Ort::Value> values;
};

class Models {
 public:
  explicit Models(const std::filesystem::path& folder)
      : encoder_path_((folder / "encoder.onnx").string()),
        decoder_path_((folder / "decoder.onnx").string()),
        encoder_(open(encoder_path_)),
        decoder_(open(decoder_path_)),
        size_(side_of_images()),
        step_(step_of_levels()) {}

  int size() const { return size_; }
  int step() const { return step_; }
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
      throw Problem("cannot decode with " + decoder_path_ + ": " + one_line(error.what()));
    }
  }

 private:
  Ort::Session open(const std::string& path) {
    const Quiet quiet;
    try {
      return Ort::Session(environment_, path.c_str(), Ort::SessionOptions{});
    } catch (const Ort::Exception& error) {
      throw Problem("cannot open the model " + path + ": " + one_line(error.what()));
    }
  }

  // The side of the squares of RGB that the encoder takes.
  int side_of_images() const {
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

  // What neighbouring levels differ by as pixels: a model of fewer than 8 bits knows multiples of it alone.
  int step_of_levels() const {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto bits = encoder_.GetModelMetadata().LookupCustomMetadataMapAllocated("n_bits", allocator);
    return bits ? 256 >> std::atoi(bits.get()) : 1;
  }

  Ort::Env environment_{ORT_LOGGING_LEVEL_FATAL, "switch"};
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::string encoder_path_, decoder_path_;
  Ort::Session encoder_, decoder_;
  int size_, step_;
};

// Exchanges the two entries along the batch axis of v, which is last among the codes.
void swap_v(Codes& codes) {
  const auto length = codes.values.back().GetTensorTypeAndShapeInfo().GetElementCount();
  auto* first = codes.values.back().GetTensorMutableData<float>();
  std::swap_ranges(first, first + length / 2, first + length / 2);
}

// --- the two commands ---

int check(Models& models) {
  Bytes images = known_images(models.size());
  to_levels(images, models.step());
  const auto lost = lost_values(images, models.decode(models.encode(images, kKnownImages)), kKnownImages);
  const auto same = std::count(lost.begin(), lost.end(), 0);
  std::cout << same << " of " << kKnownImages << " known images come back exactly\n";
  return same == kKnownImages ? 0 : 1;
}

int switch_images(Models& models, const std::array<std::string, 2>& paths, int crop) {
  Bytes pixels;
  for (const auto& path : paths) {
    const Bytes square = read_square(path, models.size(), crop);
    pixels.insert(pixels.end(), square.begin(), square.end());
  }
  to_levels(pixels, models.step());
  Codes codes = models.encode(pixels, 2);
  if (codes.names != std::vector<std::string>{"z", "v"}) {
    throw Problem(models.encoder_path() + " does not encode to z and v: without z there is nothing to switch");
  }
  const std::size_t length = pixels.size() / 2;
  const auto lost = lost_values(pixels, models.decode(codes), 2);
  for (int i = 0; i < 2; ++i) {
    const auto differ = std::to_string(lost[i]) + " of " + std::to_string(length) + " values differ";
    std::cout << paths[i] << ": " << (lost[i] ? differ : "exactly the same") << " after decoding\n";
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

int run(const std::vector<std::string>& arguments) {
  std::vector<std::string> plain;
  bool checks = false;
  int crop = 0;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--check") {
      checks = true;
    } else if (arguments[i] == "--crop") {
      const std::string given = ++i < arguments.size() ? arguments[i] : "";
      if (given.empty() || given.size() > 9 || given.find_first_not_of("0123456789") != std::string::npos) {
        throw Problem("--crop is " + given + "; it must be a whole number; " + kUsage);
      }
      crop = std::stoi(given);
    } else if (arguments[i].rfind("--", 0) == 0) {
      throw Problem("there is no option " + arguments[i] + "; " + kUsage);
    } else {
      plain.push_back(arguments[i]);
    }
  }
  if (plain.size() != (checks ? 1u : 3u)) throw Problem(kUsage);
  Models models(plain[0]);
  return checks ? check(models) : switch_images(models, {plain[1], plain[2]}, crop);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run({arguments + 1, arguments + count});
  } catch (const Problem& problem) {
    std::cerr << "error: " << problem.what() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "error: " << one_line(error.what()) << '\n';
  }
  return 2;
}
