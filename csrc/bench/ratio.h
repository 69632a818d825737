#pragma once

#include <optional>
#include <span>

namespace runtime::bench {

struct Ratio {
  double value = 0.0;  // of the geometric means; above 1: `b` is better
  struct Interval {
    double low, high;
  };
  std::optional<Interval> interval;  // none where a side has a single run
};

// How much better `b` is than `a`, runs of one figure each: b/a where more is better, else a/b. The
// interval is Welch's t interval of the difference of the logarithms' means (B. L. Welch, "The
// generalization of Student's problem when several different population variances are involved",
// 1947), so it supposes runs that scatter independently and about log-normally.
// REQUIRES: values above 0, neither side empty, 0 < confidence < 1.
Ratio CompareRuns(std::span<const double> a, std::span<const double> b, bool higher_is_better,
                  double confidence);

// The quantile of Student's t distribution: P(T <= t) = p for 0.5 <= p < 1.
double StudentQuantile(double p, double degrees_of_freedom);

double GeometricMean(std::span<const double> values);

}  // namespace runtime::bench
