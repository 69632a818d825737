// StepPlans as a scheduler writes them, of any content: consecutive steps, chained decision hashes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/plan_hash.h"
#include "runtime/step_plan.h"

namespace runtime {

class Plans {
 public:
  // The plan of the next step with so many words besides the header, each equal to `value`.
  std::vector<std::int32_t> Next(std::size_t num_words, std::int32_t value = 0) {
    std::vector<std::int32_t> words(step_plan::kHeaderWords + num_words, value);
    std::fill_n(words.begin(), step_plan::kHeaderWords, 0);
    words[step_plan::kHeaderVersion] = step_plan::kVersion;
    words[step_plan::kHeaderStep] = ++step_;
    words[step_plan::kHeaderNumWords] = static_cast<std::int32_t>(words.size());
    hash_ = PlanHash(hash_, words);
    words[step_plan::kHeaderHashLow] = static_cast<std::int32_t>(hash_);
    words[step_plan::kHeaderHashHigh] = static_cast<std::int32_t>(hash_ >> 32);
    return words;
  }

 private:
  std::int32_t step_ = 0;
  std::uint64_t hash_ = 0;
};

}  // namespace runtime
