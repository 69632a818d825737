#include "common/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace runtime {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

void AppendUtf8(std::string& out, std::uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
  } else if (code < 0x10000) {
    out += {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 0x3F)),
            static_cast<char>(0x80 | (code & 0x3F))};
  } else {
    out += {static_cast<char>(0xF0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 0x3F)),
            static_cast<char>(0x80 | (code >> 6 & 0x3F)), static_cast<char>(0x80 | (code & 0x3F))};
  }
}

// Length and smallest code point of a UTF-8 sequence by its first byte; length 0: none begins so.
struct Lead {
  std::size_t length;
  std::uint32_t bits, least;
};

Lead LeadOf(unsigned char c) {
  if (c < 0x80) return {1, c, 0};
  if (c >> 5 == 0x6) return {2, c & 0x1Fu, 0x80};
  if (c >> 4 == 0xE) return {3, c & 0x0Fu, 0x800};
  if (c >> 3 == 0x1E) return {4, c & 0x07u, 0x10000};
  return {0, 0, 0};
}

bool IsSurrogate(std::uint32_t code) { return code >= 0xD800 && code < 0xE000; }

struct Writer {
  std::string& out;

  void operator()(std::monostate) const { out += "null"; }
  void operator()(bool value) const { out += value ? "true" : "false"; }
  void operator()(std::int64_t value) const { out += std::to_string(value); }
  void operator()(double value) const { out += JsonNumber(value); }
  void operator()(const std::string& value) const { out += JsonQuoted(value); }
  void operator()(const Json::Array& values) const {
    out += '[';
    for (const Json& value : values) {
      out += (&value == values.data() ? "" : ", ") + value.Shown(std::string::npos);
    }
    out += ']';
  }
  void operator()(const Json::Object& members) const {
    out += '{';
    for (const auto& member : members) {
      out += (&member == members.data() ? "" : ", ") + JsonQuoted(member.first) + ": " +
             member.second.Shown(std::string::npos);
    }
    out += '}';
  }
};

}  // namespace

Json::Json() = default;
Json::~Json() = default;
Json::Json(const Json&) = default;
Json::Json(Json&&) noexcept = default;
Json& Json::operator=(const Json&) = default;
Json& Json::operator=(Json&&) noexcept = default;
Json::Json(std::string_view value) : value_(std::string(value)) {}
Json::Json(Array value) : value_(std::move(value)) {}
Json::Json(Object value) : value_(std::move(value)) {}
bool Json::operator==(const Json& other) const { return value_ == other.value_; }

std::optional<double> Json::number() const {
  if (const auto* whole = integer()) return static_cast<double>(*whole);
  if (const auto* real = std::get_if<double>(&value_)) return *real;
  return std::nullopt;
}

const Json* Json::Find(std::string_view name) const {
  const Object* members = object();
  if (members == nullptr) return nullptr;
  const auto found = std::find_if(members->rbegin(), members->rend(),
                                  [&](const Member& member) { return member.first == name; });
  return found == members->rend() ? nullptr : &found->second;
}

std::string Json::Shown(std::size_t max_len) const {
  std::string text;
  std::visit(Writer{text}, value_);
  if (text.size() <= max_len) return text;
  std::size_t end = max_len - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // whole letters
  return text.substr(0, end) + "...";
}

std::optional<Json> JsonReader::Next() {
  SkipSpace();
  if (at_ == text_.size()) return std::nullopt;
  line_ += std::ranges::count(text_.substr(line_at_, at_ - line_at_), '\n');
  line_at_ = at_;
  return Value(0);
}

Json JsonReader::Value(int depth) {
  if (depth == kMaxDepth && (Peek() == '[' || Peek() == '{')) {
    Fail("nested more than " + std::to_string(kMaxDepth) + " deep");
  }
  switch (Peek()) {
    case '{':
      return ObjectAt(depth);
    case '[':
      return ArrayAt(depth);
    case '"':
      return Json(String());
    case 't':
      return Word("true"), Json(true);
    case 'f':
      return Word("false"), Json(false);
    case 'n':
      return Word("null"), Json();
    default:
      return Number();
  }
}

Json JsonReader::ArrayAt(int depth) {
  Json::Array values;
  Take('[');
  SkipSpace();
  if (Take(']')) return Json(std::move(values));
  for (;;) {
    SkipSpace();
    values.push_back(Value(depth + 1));
    SkipSpace();
    if (Take(']')) return Json(std::move(values));
    if (!Take(',')) FailExpected("',' or ']'");
  }
}

Json JsonReader::ObjectAt(int depth) {
  Json::Object members;
  Take('{');
  SkipSpace();
  if (Take('}')) return Json(std::move(members));
  for (;;) {
    SkipSpace();
    if (Peek() != '"') FailExpected("a name in quotes");
    std::string name = String();
    SkipSpace();
    if (!Take(':')) FailExpected("':'");
    SkipSpace();
    members.emplace_back(std::move(name), Value(depth + 1));
    SkipSpace();
    if (Take('}')) return Json(std::move(members));
    if (!Take(',')) FailExpected("',' or '}'");
  }
}

Json JsonReader::Number() {
  const std::size_t start = at_;
  const auto digits = [this] {
    if (!IsDigit(Peek())) FailExpected(at_ == text_.size() ? "a value" : "a digit");
    while (IsDigit(Peek())) ++at_;
  };
  Take('-');
  if (!IsDigit(Peek()) && at_ == start) FailExpected("a value");
  if (!Take('0')) digits();
  const std::size_t whole_end = at_;
  if (Take('.')) digits();
  if (Take('e') || Take('E')) {
    if (!Take('+')) Take('-');
    digits();
  }
  const char *begin = text_.data() + start, *end = text_.data() + at_;
  if (std::int64_t whole;
      at_ == whole_end && std::from_chars(begin, end, whole).ec == std::errc{}) {
    return Json(whole);
  }
  double real = 0.0;
  if (std::from_chars(begin, end, real).ec != std::errc{}) {
    at_ = start;
    Fail("a number out of range");
  }
  return Json(real);
}

std::string JsonReader::String() {
  std::string out;
  Take('"');
  for (;;) {
    if (at_ == text_.size()) Fail("a string without its end");
    if (Take('"')) return out;
    if (Take('\\')) {
      Escape(out);
    } else if (static_cast<unsigned char>(Peek()) < 0x20) {
      Fail("a control character in a string");
    } else {
      Utf8(out);
    }
  }
}

void JsonReader::Escape(std::string& out) {
  constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
  const char name = Peek();
  if (const std::size_t i = kNames.find(name); name != '\0' && i != std::string_view::npos) {
    ++at_;
    out += kValues[i];
    return;
  }
  if (!Take('u')) FailExpected("an escape such as \\n or \\u00e9");
  std::uint32_t code = Hex4();
  if (code >= 0xD800 && code < 0xDC00 && Take('\\') && Take('u')) {
    const std::uint32_t low = Hex4();
    if (low < 0xDC00 || low >= 0xE000) Fail("half of a surrogate pair");
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  if (IsSurrogate(code)) Fail("half of a surrogate pair");
  AppendUtf8(out, code);
}

std::uint32_t JsonReader::Hex4() {
  std::uint32_t code = 0;
  const std::string_view digits = text_.substr(at_, 4);
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
  if (digits.size() < 4 || read.ptr != digits.data() + 4) FailExpected("four hexadecimal digits");
  at_ += 4;
  return code;
}

void JsonReader::Utf8(std::string& out) {
  const Lead lead = LeadOf(static_cast<unsigned char>(Peek()));
  if (lead.length == 0 || lead.length > text_.size() - at_) Fail("not UTF-8");
  std::uint32_t code = lead.bits;
  for (std::size_t i = 1; i < lead.length; ++i) {
    const auto c = static_cast<unsigned char>(text_[at_ + i]);
    if (c >> 6 != 0x2) Fail("not UTF-8");
    code = code << 6 | (c & 0x3Fu);
  }
  if (code < lead.least || code > 0x10FFFF || IsSurrogate(code)) Fail("not UTF-8");
  out += text_.substr(at_, lead.length);
  at_ += lead.length;
}

void JsonReader::Word(std::string_view word) {
  if (!text_.substr(at_).starts_with(word)) FailExpected("a value");
  at_ += word.size();
}

void JsonReader::SkipSpace() {
  while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string::npos) {
    ++at_;
  }
}

bool JsonReader::Take(char c) {
  if (at_ == text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

void JsonReader::Fail(const std::string& what) const {
  const auto [line, column] = Place();
  throw JsonError("line " + std::to_string(line) + ", column " + std::to_string(column) + ": " +
                  what);
}

void JsonReader::FailExpected(const std::string& what) const {
  const auto c = static_cast<unsigned char>(Peek());
  std::string found = std::string("'") + static_cast<char>(c) + "'";
  if (at_ == text_.size()) found = "the end";
  if (at_ < text_.size() && (c < 0x20 || c >= 0x7F)) found = "byte " + std::to_string(c);
  Fail("expected " + what + ", found " + found);
}

std::pair<std::int64_t, std::int64_t> JsonReader::Place() const {
  const std::string_view before = text_.substr(0, at_);
  const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
  return {1 + std::ranges::count(before, '\n'),
          1 + static_cast<std::int64_t>(before.size() - line_start)};
}

Json ParseJson(std::string_view text) {
  JsonReader reader(text);
  std::optional<Json> value = reader.Next();
  if (!value) throw JsonError("line 1, column 1: expected a value, found the end");
  if (reader.Next()) {
    throw JsonError("line " + std::to_string(reader.line()) +
                    ": a second value after the document");
  }
  return *std::move(value);
}

std::string JsonQuoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) {
      out += c;
    } else {
      constexpr char kHex[] = "0123456789abcdef";
      out += {'\\', 'u', '0', '0', kHex[c >> 4], kHex[c & 0xF]};
    }
  }
  return out + '"';
}

std::string JsonNumber(double value) {
  if (!std::isfinite(value)) return "null";
  char digits[32];
  std::string text(digits, std::to_chars(digits, digits + sizeof(digits), value).ptr);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

}  // namespace runtime
