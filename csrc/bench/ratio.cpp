#include "bench/ratio.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace runtime::bench {
namespace {

struct Sample {
  double mean = 0.0;
  double error = 0.0;  // variance of the mean; 0 for a single value
  double count = 0.0;
};

Sample LogSample(std::span<const double> values) {
  Sample sample{.count = static_cast<double>(values.size())};
  for (const double value : values) sample.mean += std::log(value) / sample.count;
  double squares = 0.0;
  for (const double value : values) squares += std::pow(std::log(value) - sample.mean, 2);
  if (values.size() > 1) sample.error = squares / (sample.count - 1) / sample.count;
  return sample;
}

// The continued fraction of the incomplete beta function, by Lentz's method (M. Abramowitz, I.
// Stegun, "Handbook of Mathematical Functions", 26.5.8).
double BetaFraction(double x, double a, double b) {
  constexpr double kTiny = 1e-300;
  const auto nonzero = [](double value) { return std::abs(value) < kTiny ? kTiny : value; };
  double c = 1.0, d = 1.0 / nonzero(1.0 - (a + b) * x / (a + 1.0)), fraction = d;
  for (int m = 1; m <= 10000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    const double before = fraction;
    for (const double term : {even, odd}) {
      d = 1.0 / nonzero(1.0 + term * d);
      c = nonzero(1.0 + term / c);
      fraction *= c * d;
    }
    if (std::abs(fraction - before) <= 1e-15 * std::abs(fraction)) break;
  }
  return fraction;
}

// The regularised incomplete beta function I_x(a, b).
double IncompleteBeta(double x, double a, double b) {
  if (x <= 0.0 || x >= 1.0) return x <= 0.0 ? 0.0 : 1.0;
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) +
                                a * std::log(x) + b * std::log1p(-x));
  if (x < (a + 1) / (a + b + 2)) return front * BetaFraction(x, a, b) / a;
  return 1.0 - front * BetaFraction(1.0 - x, b, a) / b;
}

double StudentCdf(double t, double degrees) {  // t >= 0
  return 1.0 - 0.5 * IncompleteBeta(degrees / (degrees + t * t), degrees / 2, 0.5);
}

// Welch's approximation of the degrees of freedom. REQUIRES: the errors' sum is above 0.
double Degrees(const Sample& a, const Sample& b) {
  const double error = a.error + b.error;
  return error * error / (a.error * a.error / (a.count - 1) + b.error * b.error / (b.count - 1));
}

}  // namespace

double StudentQuantile(double p, double degrees_of_freedom) {
  double low = 0.0, high = 1.0;
  while (StudentCdf(high, degrees_of_freedom) < p && high < 1e12) high *= 2;
  for (int i = 0; i < 200 && high - low > 1e-12 * high; ++i) {
    const double middle = (low + high) / 2;
    (StudentCdf(middle, degrees_of_freedom) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

double GeometricMean(std::span<const double> values) {
  return values.size() == 1 ? values.front() : std::exp(LogSample(values).mean);
}

Ratio CompareRuns(std::span<const double> a, std::span<const double> b, bool higher_is_better,
                  double confidence) {
  const Sample first = LogSample(higher_is_better ? a : b);
  const Sample second = LogSample(higher_is_better ? b : a);
  const double center = second.mean - first.mean;
  Ratio ratio{.value = std::exp(center), .interval = std::nullopt};
  if (a.size() < 2 || b.size() < 2) return ratio;
  const double error = std::sqrt(first.error + second.error);
  const double width =
      error == 0.0 ? 0.0 : error * StudentQuantile((1 + confidence) / 2, Degrees(first, second));
  ratio.interval = {std::exp(center - width), std::exp(center + width)};
  return ratio;
}

}  // namespace runtime::bench
