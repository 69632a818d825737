#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "common/record_file.h"
#include "scheduler/event_records.h"

namespace runtime::event_log {

// Reads each field that a record's Visit shows. What no recorder writes is refused.
struct In {
  RecordReader& file;

  void operator()(Word& word) { word = file.TakeWord(); }
  void operator()(double& value) { value = std::bit_cast<double>(file.TakeWord()); }
  void operator()(std::string& text) { text = file.TakeText(); }
  template <typename Enum>
  void Choice(Enum& value, Enum last) {
    value = static_cast<Enum>(Number(0, static_cast<std::int64_t>(last)));
  }
  void operator()(bool& value) { value = Number(0, 1) != 0; }
  template <std::integral Value>
  void operator()(Value& value) {
    using Limits = std::numeric_limits<Value>;
    value = static_cast<Value>(Number(Limits::min(), Limits::max()));
  }
  template <typename Item>
  void operator()(std::vector<Item>& items) {
    items.resize(Count());
    for (Item& item : items) {
      if constexpr (std::is_class_v<Item>) {
        item.Visit(*this);
      } else {
        (*this)(item);
      }
    }
  }
  void operator()(std::map<Word, double>& items) {
    for (std::size_t i = Count(); i > 0; --i) {
      Word key;
      (*this)(key);
      (*this)(items[key]);
    }
  }

  std::int64_t Number(std::int64_t low, std::int64_t high) {
    const std::int64_t value = file.Take();
    if (value < low || value > high) {
      file.Refuse("a number is " + std::to_string(value) + ": must be between " +
                  std::to_string(low) + " and " + std::to_string(high));
    }
    return value;
  }

  // Of items, each of which takes a byte or more.
  std::size_t Count() {
    return static_cast<std::size_t>(Number(0, static_cast<std::int64_t>(file.num_left())));
  }
};

template <typename Record>
Record Read(RecordReader& file) {
  Record record;
  In in{file};
  record.Visit(in);
  return record;
}

// Reads one record and calls `handle` with it. The header is never the next one.
void ReadNext(RecordReader& file, auto&& handle) {
  switch (static_cast<Kind>(In{file}.Number(1, kNumKinds - 1))) {
    case Kind::kHeader:
      break;
    case Kind::kClock:
      return handle(Read<Clock>(file));
    case Kind::kSubmit:
      return handle(Read<Submit>(file));
    case Kind::kAbort:
      return handle(Read<Abort>(file));
    case Kind::kStop:
      return handle(Read<Stop>(file));
    case Kind::kResetPrefixCache:
      return handle(Read<ResetPrefixCache>(file));
    case Kind::kPlan:
      return handle(Read<Plan>(file));
    case Kind::kNoPlan:
      return handle(Read<NoPlan>(file));
    case Kind::kUpdate:
      return handle(Read<Update>(file));
    case Kind::kTransferDone:
      return handle(Read<TransferDone>(file));
    case Kind::kPin:
      return handle(Read<Pin>(file));
    case Kind::kUnpin:
      return handle(Read<Unpin>(file));
  }
}

}  // namespace runtime::event_log
