#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "bench/pairing.h"
#include "bench/ratio.h"
#include "runtime/error.h"

namespace runtime::bench {
namespace {

namespace fs = std::filesystem;

class PairingTest : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  std::vector<Measurement> Read(const std::string& text) {
    const fs::path path = folder_ / "rows.jsonl";
    std::ofstream(path) << text;
    return ReadMeasurements(path);
  }

  std::string Refusal(const std::string& text) {
    try {
      return "taken: " + std::to_string(Read(text).size());
    } catch (const ConfigError& e) {
      return e.what();
    }
  }

  const fs::path folder_ = fs::path(testing::TempDir()) / ("compare." + std::to_string(getpid()));
};

TEST(BetterTest, FiguresAreKnownByTheirNames) {
  EXPECT_EQ(BetterOf("tok_s"), Better::kHigher);
  EXPECT_EQ(BetterOf("goodput_per_s"), Better::kHigher);
  EXPECT_EQ(BetterOf("tpot_ms"), Better::kLower);
  EXPECT_EQ(BetterOf("s"), Better::kLower);
  EXPECT_EQ(BetterOf("limit"), Better::kNeither);
  EXPECT_EQ(BetterOf("steps"), Better::kNeither);
}

TEST_F(PairingTest, FiguresComeFromNumbersListsAndObjects) {
  const auto rows = Read(
      R"({"scenario": "x", "tpot_ms": 2.0, "tok_s": [1, 2.5], "ttft_ms": {"p50": 3, "p99": 9},
          "steps": 4, "target_itl_ms": 5.0, "runs": {"tpot_ms": [1.0, 2.0, 3.0]}})");
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(*rows[0].Find("tpot_ms"), (std::vector<double>{1.0, 2.0, 3.0}));
  EXPECT_EQ(*rows[0].Find("tok_s"), (std::vector<double>{1.0, 2.5}));
  EXPECT_EQ(*rows[0].Find("ttft_ms.p99"), (std::vector<double>{9.0}));
  EXPECT_EQ(rows[0].Find("steps"), nullptr);
  EXPECT_EQ(rows[0].Find("target_itl_ms"), nullptr);  // a setting
}

TEST_F(PairingTest, RowsOfOneCommitAreRepeatedRuns) {
  const auto rows = Read(R"({"scenario": "x", "commit": "a", "s": 1.0}
                            {"scenario": "x", "commit": "b", "s": 2.0}
                            {"scenario": "x", "commit": "b", "s": 3.0}
                            {"scenario": "x", "commit": "b", "s": 9.0, "tp": 2})");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(*rows[0].Find("s"), (std::vector<double>{2.0, 3.0}));  // a is older
  EXPECT_EQ(*rows[1].Find("s"), (std::vector<double>{9.0}));
}

TEST_F(PairingTest, PartnersAgreeInWhatBothSay) {
  const auto a = Read(R"({"scenario": "x", "engine": "vllm", "model": "m", "s": 1.0}
                         {"scenario": "y", "model": "m", "tp": 2, "s": 1.0}
                         {"scenario": "z", "s": 1.0})");
  const auto b = Read(R"({"scenario": "x", "engine": "runtime", "model": "m", "batch": 8, "s": 2.0}
                         {"scenario": "x", "model": "m", "deterministic": true, "s": 3.0}
                         {"scenario": "y", "model": "m", "tp": 1, "s": 4.0})");
  const Pairs pairs = PairUp(a, b);
  ASSERT_EQ(pairs.both.size(), 1u);
  EXPECT_EQ(*pairs.both[0].second->Find("s"), (std::vector<double>{2.0}));
  EXPECT_EQ(pairs.alone.size(), 2u);
}

TEST_F(PairingTest, TheClosestRowIsThePartner) {
  const auto a = Read(R"({"scenario": "x", "engine": "runtime", "device": "d", "s": 1.0})");
  const std::string one = R"({"scenario": "x", "engine": "vllm", "device": "d", "s": 2.0})";
  const std::string two = R"({"scenario": "x", "engine": "vllm", "device": "e", "s": 3.0})";
  const std::string tie = R"({"scenario": "x", "engine": "other", "device": "d", "s": 4.0})";
  const auto b = Read(two + one);
  const Pairs pairs = PairUp(a, b);
  ASSERT_EQ(pairs.both.size(), 1u);
  EXPECT_EQ(*pairs.both[0].second->Find("s"), (std::vector<double>{2.0}));
  const auto c = Read(one + tie);
  const Pairs none = PairUp(a, c);
  EXPECT_TRUE(none.both.empty());
  EXPECT_NE(none.alone.at(0).find("no better than"), std::string::npos);
}

TEST_F(PairingTest, ArraysHoldRowsToo) {
  EXPECT_EQ(Read(R"([{"scenario": "x", "s": 1}, {"op": "y", "us": 2}])").size(), 2u);
}

TEST_F(PairingTest, RefusalsSayFileAndLine) {
  EXPECT_NE(
      Refusal("{\"scenario\": \"x\"}\n{\"s\": }").find("rows.jsonl, line 2, column 7: expected"),
      std::string::npos);
  EXPECT_NE(
      Refusal("\n{\"s\": 1}").find("line 2: {\"s\": 1}: must be an object with scenario or op"),
      std::string::npos);
  EXPECT_NE(Refusal("3").find("must be an object"), std::string::npos);
  EXPECT_NE(Refusal("").find("has 0 rows"), std::string::npos);
  EXPECT_THROW(ReadMeasurements("/no/such/file"), ConfigError);
  EXPECT_THROW(ReadMeasurements("/"), ConfigError);  // a folder
}

TEST(RatioTest, AboveOneIsBetter) {
  const std::vector<double> a{2.0}, b{4.0};
  EXPECT_DOUBLE_EQ(CompareRuns(a, b, true, 0.95).value, 2.0);
  EXPECT_DOUBLE_EQ(CompareRuns(a, b, false, 0.95).value, 0.5);
  EXPECT_FALSE(CompareRuns(a, b, true, 0.95).interval);  // nothing says how runs scatter
}

// Tables of Student's t, and its closed forms for 1 and 2 degrees of freedom.
TEST(RatioTest, StudentQuantiles) {
  EXPECT_NEAR(StudentQuantile(0.975, 4), 2.776445, 1e-6);
  EXPECT_NEAR(StudentQuantile(0.95, 10), 1.812461, 1e-6);
  EXPECT_NEAR(StudentQuantile(0.975, 1), std::tan(std::acos(-1.0) * 0.475), 1e-6);
  EXPECT_NEAR(StudentQuantile(0.9, 2), 0.8 / std::sqrt(2 * 0.9 * 0.1), 1e-6);
  EXPECT_NEAR(StudentQuantile(0.975, 1e6), 1.959966, 1e-5);
  EXPECT_NEAR(StudentQuantile(0.5, 3), 0.0, 1e-9);
}

// Welch's interval of logs, by hand: logs of A are 0 and 0.2, of B 1.0 and 1.2; the variance of
// each mean is 0.01, degrees of freedom are 2, the quantile 4.302653.
TEST(RatioTest, WelchInterval) {
  const std::vector<double> a{1.0, std::exp(0.2)}, b{std::exp(1.0), std::exp(1.2)};
  const Ratio ratio = CompareRuns(a, b, true, 0.95);
  EXPECT_NEAR(std::log(ratio.value), 1.0, 1e-12);
  ASSERT_TRUE(ratio.interval);
  const double width = 4.302653 * std::sqrt(0.02);
  EXPECT_NEAR(std::log(ratio.interval->low), 1.0 - width, 1e-5);
  EXPECT_NEAR(std::log(ratio.interval->high), 1.0 + width, 1e-5);
  const Ratio inverse = CompareRuns(b, a, false, 0.95);
  EXPECT_NEAR(inverse.interval->low, ratio.interval->low, 1e-12);
}

TEST(RatioTest, EqualRunsHaveNoWidth) {
  const std::vector<double> a{2.0, 2.0}, b{1.0, 1.0, 1.0};
  const Ratio ratio = CompareRuns(a, b, false, 0.99);
  EXPECT_DOUBLE_EQ(ratio.interval->low, 2.0);
  EXPECT_DOUBLE_EQ(ratio.interval->high, 2.0);
}

}  // namespace
}  // namespace runtime::bench
