#pragma once

#include <cstdint>
#include <vector>

#include "runtime/simulation.h"

namespace runtime::simulation {

// Keeps at most kMaxTimeline points of however many: when full, every other one goes, and from then
// on only every second of those offered is taken.
class Timeline {
 public:
  bool WantsNext() { return num_offered_++ % stride_ == 0; }

  void Add(const TimelinePoint& point) {
    if (points_.size() == SimulationResult::kMaxTimeline) Thin();
    points_.push_back(point);
  }

  std::vector<TimelinePoint> Take() { return std::move(points_); }

 private:
  void Thin() {
    for (std::size_t i = 0; 2 * i < points_.size(); ++i) points_[i] = points_[2 * i];
    points_.resize(points_.size() / 2);
    stride_ *= 2;
  }

  std::vector<TimelinePoint> points_;
  std::int64_t stride_ = 1;
  std::int64_t num_offered_ = 0;
};

}  // namespace runtime::simulation
