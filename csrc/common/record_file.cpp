#include "common/record_file.h"

#include <cerrno>
#include <cstring>
#include <span>

#include "common/siphash.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr std::size_t kFrameSize = 1 << 16;  // of a frame, at least, but for the last one
constexpr std::int64_t kMaxText = 1 << 10;
constexpr std::int64_t kFileHeader = kRecordMagic.size() + sizeof(std::uint32_t);
constexpr std::int64_t kFrameHeader = sizeof(std::uint32_t) + sizeof(std::uint64_t);

FileHandle Open(const std::string& path, const char* mode, const char* verb) {
  FileHandle file(std::fopen(path.c_str(), mode));
  if (!file) {
    throw ConfigError(std::string("cannot ") + verb + " " + path + ": " + std::strerror(errno));
  }
  return file;
}

template <typename Word>
std::string_view BytesOf(const Word& word) {
  return {reinterpret_cast<const char*>(&word), sizeof(word)};
}

template <typename Word>
Word WordAt(std::string_view bytes, std::size_t at = 0) {
  Word word;
  std::memcpy(&word, bytes.data() + at, sizeof(word));
  return word;
}

std::uint64_t Checksum(std::string_view frame) {
  return SipHash128({frame.size(), 0}, std::as_bytes(std::span(frame))).low;
}

}  // namespace

RecordWriter::RecordWriter(const std::string& path, std::uint32_t version)
    : path_(path), file_(Open(path, "wb", "write")) {
  std::setvbuf(file_.get(), nullptr, _IONBF, 0);  // frames are its buffer
  frame_.reserve(2 * kFrameSize);
  Write(std::string(kRecordMagic) + std::string(BytesOf(version)));
}

RecordWriter::~RecordWriter() { Flush(); }

void RecordWriter::Put(std::int64_t value) {
  auto rest = (static_cast<std::uint64_t>(value) << 1) ^ static_cast<std::uint64_t>(value >> 63);
  for (; rest >= 0x80; rest >>= 7) PutByte(static_cast<std::uint8_t>(rest | 0x80));
  PutByte(static_cast<std::uint8_t>(rest));
}

void RecordWriter::PutWord(std::uint64_t value) { frame_ += BytesOf(value); }

void RecordWriter::PutText(std::string_view text) {
  Put(static_cast<std::int64_t>(text.size()));
  frame_ += text;
}

void RecordWriter::EndRecord() {
  if (frame_.size() >= kFrameSize) Flush();
}

void RecordWriter::Flush() {
  if (frame_.empty()) return;
  Write(BytesOf(static_cast<std::uint32_t>(frame_.size())));
  Write(BytesOf(Checksum(frame_)));
  Write(frame_);
  frame_.clear();
}

void RecordWriter::Write(std::string_view bytes) {
  if (!file_ || std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) == bytes.size()) return;
  std::fprintf(stderr, "runtime: %s: %s; nothing more is recorded\n", path_.c_str(),
               std::strerror(errno));
  file_.reset();
}

RecordReader::RecordReader(const std::string& path, std::uint32_t version)
    : path_(path), file_(Open(path, "rb", "read")) {
  std::fseek(file_.get(), 0, SEEK_END);
  size_ = std::ftell(file_.get());
  std::rewind(file_.get());
  std::string header(kFileHeader, '\0');
  header.resize(std::fread(header.data(), 1, header.size(), file_.get()));
  if (!header.starts_with(kRecordMagic) || header.size() < kFileHeader) {
    throw ConfigError(path + " is no event log: it does not begin with '" +
                      std::string(kRecordMagic) + "' and a version");
  }
  const auto found = WordAt<std::uint32_t>(header, kRecordMagic.size());
  if (found != version) {
    throw ConfigError(path + " is an event log of version " + std::to_string(found) +
                          ": this runtime reads version " + std::to_string(version),
                      "replay it with the runtime that recorded it");
  }
  Rewind();
}

void RecordReader::Rewind() {
  frame_.clear();
  at_ = 0;
  offset_ = next_ = kFileHeader;
}

bool RecordReader::AtEnd() {
  if (at_ < frame_.size()) return false;
  offset_ = next_;
  if (offset_ == size_) return true;
  ReadFrame();
  return false;
}

void RecordReader::ReadFrame() {
  const auto require = [&](std::int64_t needed) {
    if (size_ - offset_ >= needed) return;
    throw ConfigError(path_ + " is truncated: the frame at byte " + std::to_string(offset_) +
                      " has " + std::to_string(needed) + " bytes, and the file ends after " +
                      std::to_string(size_ - offset_) + " of them");
  };
  require(kFrameHeader + 1);
  std::string header(kFrameHeader, '\0');
  std::fseek(file_.get(), offset_, SEEK_SET);
  header.resize(std::fread(header.data(), 1, header.size(), file_.get()));
  const auto size = WordAt<std::uint32_t>(header);
  require(kFrameHeader + std::int64_t{size});
  frame_.resize(size);
  frame_.resize(std::fread(frame_.data(), 1, frame_.size(), file_.get()));
  at_ = 0;
  if (size == 0 || Checksum(frame_) != WordAt<std::uint64_t>(header, sizeof(size))) {
    frame_.clear();
    throw ConfigError(path_ + " is corrupted: the checksum of the " + std::to_string(size) +
                      " bytes of the frame at byte " + std::to_string(offset_) +
                      " is not the one that was written");
  }
  next_ = offset_ + kFrameHeader + size;
}

void RecordReader::Refuse(const std::string& what) const {
  throw ConfigError(path_ + " is corrupted: in the frame at byte " + std::to_string(offset_) +
                    ", " + what);
}

std::string_view RecordReader::Bytes(std::size_t count) {
  if (count > frame_.size() - at_) Refuse("a record is longer than its frame");
  const auto bytes = std::string_view(frame_).substr(at_, count);
  at_ += count;
  return bytes;
}

std::int64_t RecordReader::Take() {
  std::uint64_t code = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = static_cast<std::uint8_t>(Bytes(1)[0]);
    if (shift > 63) Refuse("a number has more than 10 bytes");
    code |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) break;
  }
  return static_cast<std::int64_t>(code >> 1) ^ -static_cast<std::int64_t>(code & 1);
}

std::uint64_t RecordReader::TakeWord() { return WordAt<std::uint64_t>(Bytes(8)); }

std::string RecordReader::TakeText() {
  const std::int64_t size = Take();
  if (size < 0 || size > kMaxText) Refuse("a text has " + std::to_string(size) + " bytes");
  return std::string(Bytes(static_cast<std::size_t>(size)));
}

}  // namespace runtime
