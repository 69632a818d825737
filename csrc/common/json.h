// Reads JSON (RFC 8259) from text that nobody vouches for: depth and numbers are bounded, strings
// are valid UTF-8, and every refusal says the line and the column.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace runtime {

// "line 3, column 7: expected a value, found 'x'".
class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;  // in the order of the text

  Json();                                                          // null
  explicit Json(std::same_as<bool> auto value) : value_(value) {}  // no pointer becomes true
  explicit Json(std::signed_integral auto value) : value_(std::int64_t{value}) {}
  explicit Json(double value) : value_(value) {}
  explicit Json(std::string_view value);
  explicit Json(Array value);
  explicit Json(Object value);
  ~Json();
  Json(const Json&);
  Json(Json&&) noexcept;
  Json& operator=(const Json&);
  Json& operator=(Json&&) noexcept;

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  // Each is nullptr, or empty, when the value is of another kind.
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }
  // A number without fraction and exponent that 64 bits hold.
  const std::int64_t* integer() const { return std::get_if<std::int64_t>(&value_); }
  std::optional<double> number() const;

  // A member of an object, the last one of that name; nullptr if there is none, or this is no
  // object.
  const Json* Find(std::string_view name) const;

  // One line of JSON, at most `max_len` bytes of it and "..." for the rest; for messages.
  std::string Shown(std::size_t max_len = 60) const;

  bool operator==(const Json&) const;

 private:
  std::variant<std::monostate, bool, std::int64_t, double, std::string, Array, Object> value_;
};

// Values of one text, one after the other: a document of JSON has one, JSON lines have many.
class JsonReader {
 public:
  static constexpr int kMaxDepth = 64;

  // `text` must outlive the reader.
  explicit JsonReader(std::string_view text) : text_(text) {}

  // Empty at the end of the text. Throws JsonError.
  std::optional<Json> Next();
  // Of the value that Next gave last.
  std::int64_t line() const { return line_; }

 private:
  Json Value(int depth);
  Json ArrayAt(int depth);
  Json ObjectAt(int depth);
  Json Number();
  std::string String();
  void Escape(std::string& out);
  std::uint32_t Hex4();
  void Utf8(std::string& out);
  void Word(std::string_view word);
  void SkipSpace();
  bool Take(char c);
  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  [[noreturn]] void Fail(const std::string& what) const;
  [[noreturn]] void FailExpected(const std::string& what) const;
  std::pair<std::int64_t, std::int64_t> Place() const;  // line and column of at_, from 1

  std::string_view text_;
  std::size_t at_ = 0;
  std::size_t line_at_ = 0;  // up to where line_ has counted
  std::int64_t line_ = 1;
};

// The one value of a document. Throws JsonError.
Json ParseJson(std::string_view text);

// `text` in quotes, escaped as JSON asks.
std::string JsonQuoted(std::string_view text);
// The shortest text that reads back as this number, always with a point or an exponent; "null" for
// what JSON has no number for.
std::string JsonNumber(double value);

}  // namespace runtime
