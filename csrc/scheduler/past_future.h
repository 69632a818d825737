#pragma once

#include <cstdint>
#include <memory>

#include "scheduler/admission.h"
#include "scheduler/future_use.h"
#include "scheduler/length_history.h"

namespace runtime {

// How long a request's output will be.
class Forecast {
 public:
  virtual ~Forecast() = default;
  // Tokens of prompt and output at its end; at most its max_len.
  virtual std::int32_t EndOf(const Request& request) const = 0;
  virtual void OnFinished(const Request&) {}
};

// A quantile of the outputs that finished and are longer than this one is now: those of the
// request's tenant once they have replaced its unknown entries, else everybody's. It is max_tokens
// where an unknown length is drawn; an output longer than all before it is taken to become twice as
// long as it is.
class HistoryForecast final : public Forecast {
 public:
  explicit HistoryForecast(const SchedulerConfig& config);
  std::int32_t EndOf(const Request& request) const override;
  void OnFinished(const Request& request) override;

 private:
  const std::int32_t window_, num_unknown_;
  LengthHistory everybody_;
};

// The true lengths, which only a simulation knows.
class OracleForecast final : public Forecast {
 public:
  std::int32_t EndOf(const Request& request) const override;
};

// Admits a request if the blocks in use, at their predicted peak with it, stay below the pool but
// for a reserve (R. Gong et al., "Past-Future Scheduler for LLM Serving under SLA Guarantees",
// ASPLOS 2025).
//
// Each request stands in the peak with the blocks that only it refers to, its uncomputed prompt
// included; all others, shared or set aside, are one constant. Where the paper draws a request's
// remaining length at random, anew for each decision, here it is a quantile that is the request's
// own for life: a low-discrepancy sequence over arrivals spreads them evenly, decisions are a
// function of state, and asking again does not wait for a lucky draw.
class PastFutureAdmission final : public AdmissionPolicy {
 public:
  PastFutureAdmission(const SchedulerConfig& config, std::int32_t num_blocks,
                      std::unique_ptr<Forecast> forecast);

  void BeginStep() override { is_current_ = false; }
  bool Admits(const AdmissionView& view) override;
  void OnFinished(const Request& request) override { forecast_->OnFinished(request); }

  // The peak, in blocks, if the candidate starts.
  std::int64_t PeakWith(const AdmissionView& view);

 private:
  void Count(const AdmissionView& view);
  void Add(const AdmissionView& view, const Request& request, std::int32_t has, std::int32_t end);

  const std::unique_ptr<Forecast> forecast_;
  const std::int64_t limit_;
  FutureUse use_;
  std::int64_t constant_ = 0;  // blocks that stay in use
  bool is_current_ = false;    // the above are this step's
};

}  // namespace runtime
