#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/error.h"

namespace runtime::bench {

using Words = std::vector<std::string>;

// A command line that cannot be followed.
class UsageError : public ConfigError {
 public:
  using ConfigError::ConfigError;
};

// What a subcommand takes: flags and operands, with the variables that their values go to. These
// must outlive the object, and what they hold when they are named is shown as the default.
class Flags {
 public:
  // `program` as the user calls it, "runtime-bench roofline".
  Flags(std::string program, std::string summary)
      : program_(std::move(program)), summary_(std::move(summary)) {}

  // --name; with `can_be_off` --no-name as well.
  void Switch(const std::string& name, const std::string& help, bool& target,
              bool can_be_off = false);
  // --name VALUE or --name=VALUE. T: std::string, std::int32_t, std::int64_t or double, a vector of
  // these (commas between) or an optional one.
  template <typename T>
  void Value(const std::string& name, const std::string& metavar, const std::string& help,
             T& target);
  // A word that is no flag, in the order in which they are named.
  void Operand(const std::string& metavar, const std::string& help, std::string& target,
               bool is_required = true);

  // False when --help was asked for and is printed. Throws UsageError.
  bool Parse(const Words& words) const;
  std::string Help() const;

 private:
  struct Flag {
    std::string name, metavar, help;  // no metavar: a switch
    std::function<void(const std::string&)> set;
  };
  struct Position {
    std::string metavar, help;
    std::string* target;
    bool is_required;
  };

  std::size_t TakeFlag(const Words& words, std::size_t at) const;
  [[noreturn]] void FailUnknown(const std::string& name) const;

  std::string program_, summary_;
  std::vector<Flag> flags_;
  std::vector<Position> operands_;
};

}  // namespace runtime::bench
