#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace runtime {

// A file of numbers in records, written in frames:
//
//   file   magic "rt-event", version u32, then frames
//   frame  size u32, checksum u64, `size` bytes of whole records
//   value  a number: LEB128 of its zigzag code, 1 to 10 bytes; a word: 8 bytes; a text: its length
//          as a number, then its bytes
//
// All little-endian. The checksum is the low half of SipHash128 of the frame's bytes, keyed by its
// size, so that a damaged byte is told from a different content.
inline constexpr std::string_view kRecordMagic = "rt-event";

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using FileHandle = std::unique_ptr<std::FILE, CloseFile>;

// Appends records. After the first that cannot be written it says so on standard error and drops
// what follows: the log of a program must not end it. Not thread-safe.
class RecordWriter {
 public:
  // Replaces the file. Throws ConfigError when that cannot be done.
  RecordWriter(const std::string& path, std::uint32_t version);
  ~RecordWriter();
  RecordWriter(const RecordWriter&) = delete;
  RecordWriter& operator=(const RecordWriter&) = delete;

  void Put(std::int64_t value);
  void PutWord(std::uint64_t value);
  void PutText(std::string_view text);
  // What was put since the last call is one record; it is written some time.
  void EndRecord();
  // Between two records: writes all there are.
  void Flush();

 private:
  void PutByte(std::uint8_t byte) { frame_.push_back(static_cast<char>(byte)); }
  void Write(std::string_view bytes);

  const std::string path_;
  FileHandle file_;
  std::string frame_;
};

// Reads them. Every failure is a ConfigError that names the file, the byte and what is wrong.
class RecordReader {
 public:
  RecordReader(const std::string& path, std::uint32_t version);

  // Whether no record follows. Call it between records only: it reads the next frame when needed.
  bool AtEnd();
  std::int64_t Take();
  std::uint64_t TakeWord();
  std::string TakeText();
  // Bytes of the frame at hand that were not taken yet.
  std::size_t num_left() const { return frame_.size() - at_; }

  // Throws: the record at hand cannot be, because of `what`.
  [[noreturn]] void Refuse(const std::string& what) const;
  // Starts again.
  void Rewind();

 private:
  void ReadFrame();
  std::uint64_t TakeBytes(std::size_t count);
  std::string_view Bytes(std::size_t count);

  const std::string path_;
  FileHandle file_;
  std::int64_t size_ = 0;    // of the file
  std::int64_t offset_ = 0;  // of the frame at hand
  std::int64_t next_ = 0;    // of the one behind it
  std::string frame_;
  std::size_t at_ = 0;
};

}  // namespace runtime
