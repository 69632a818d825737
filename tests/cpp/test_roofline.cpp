#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/roofline.h"

namespace runtime {
namespace {

constexpr char kLlama8B[] = R"({"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
  "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
  "vocab_size": 128256, "tie_word_embeddings": false})";

constexpr char kExperts[] = R"({"model_type": "qwen3_moe", "hidden_size": 2048,
  "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
  "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
  "num_experts_per_tok": 8, "vocab_size": 151936, "tie_word_embeddings": false})";

std::string Refusal(const char* config) {
  try {
    ModelShape::FromConfig(config);
    return "taken";
  } catch (const ModelFormatError& e) {
    return e.what();
  }
}

TEST(ModelShapeTest, CountsParameters) {
  const ModelShape llama = ModelShape::FromConfig(kLlama8B);
  EXPECT_NEAR(llama.total(), 8.03e9, 0.01e9);
  EXPECT_EQ(llama.head_dim, 128);
  EXPECT_EQ(llama.KvValues(1), 2.0 * 32 * 8 * 128);
  EXPECT_EQ(llama.KvValues(16), 2.0 * 32 * 128);  // a head is not split
  const ModelShape moe = ModelShape::FromConfig(kExperts);
  EXPECT_NEAR(moe.total(), 30.5e9, 0.1e9);
  EXPECT_NEAR(moe.active() + moe.head, 3.04e9, 0.05e9);
}

TEST(ModelShapeTest, OneTokenReadsItsExpertsAndManyReadAll) {
  const ModelShape moe = ModelShape::FromConfig(kExperts);
  EXPECT_NEAR(moe.Read(1), moe.active() + moe.head, 1.0);
  EXPECT_NEAR(moe.Read(1e6), moe.total() - moe.embedding, 1.0);
}

TEST(ModelShapeTest, OtherNamesMeanTheSame) {
  const ModelShape bloom = ModelShape::FromConfig(
      R"({"model_type": "bloom", "n_embed": 4096, "n_layer": 30, "n_head": 32,
          "vocab_size": 250880, "tie_word_embeddings": true})");
  EXPECT_EQ(bloom.kv_heads, 32);
  EXPECT_EQ(bloom.embedding, 0.0);
  EXPECT_NEAR(bloom.total(), 7.07e9, 0.01e9);  // two matrices in a feed-forward layer
}

TEST(ModelShapeTest, SaysEverythingThatIsWrong) {
  const std::string refusal = Refusal(R"({"hidden_size": 10, "num_attention_heads": 3,
      "num_hidden_layers": true, "vocab_size": 99999999, "tie_word_embeddings": 1})");
  for (const char* part :
       {"model_type is missing", "num_hidden_layers=true: an integer from 1 to 4096 is needed",
        "vocab_size=99999999: an integer from 1 to 16777216 is needed",
        "hidden_size=10 is not a multiple of num_attention_heads=3",
        "tie_word_embeddings=1: true or false is needed"}) {
    EXPECT_NE(refusal.find(part), std::string::npos) << part << " in " << refusal;
  }
  EXPECT_EQ(Refusal("[]"), "config.json: an object is needed");
  EXPECT_EQ(Refusal("{\n,"), "config.json: line 2, column 1: expected a name in quotes, found ','");
}

TEST(ModelShapeTest, LargestSizesDoNotOverflow) {
  const ModelShape shape = ModelShape::FromConfig(
      R"({"model_type": "x", "hidden_size": 1048576, "num_hidden_layers": 4096,
          "num_attention_heads": 16384, "head_dim": 4096, "intermediate_size": 4194304,
          "moe_intermediate_size": 4194304, "num_experts": 4194304, "n_shared_experts": 4194304,
          "num_experts_per_tok": 4194304, "vocab_size": 16777216})");
  EXPECT_GT(shape.dense, 0.0);
  EXPECT_TRUE(std::isfinite(shape.total()));
}

// A damaged config is refused, or its numbers are numbers.
TEST(ModelShapeTest, DamagedConfigsAreRefusedOrCounted) {
  std::mt19937 random(11);
  int num_counted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string config = kExperts;
    for (int changes = 1 + static_cast<int>(random() % 3); changes > 0; --changes) {
      config[random() % config.size()] = "0123456789eE.-{}[],:\"tn "[random() % 25];
    }
    try {
      const ModelShape shape = ModelShape::FromConfig(config);
      EXPECT_TRUE(shape.total() > 0.0 && std::isfinite(shape.Read(1e6))) << config;
      EXPECT_GT(Roofline(shape, {}).Decode(1, 1).total(), 0.0) << config;
      ++num_counted;
    } catch (const ModelFormatError&) {
    }
  }
  EXPECT_GT(num_counted, 1000);
}

TEST(RooflineTest, SmallBatchesReadAndLargeOnesMultiply) {
  const Roofline limits(ModelShape::FromConfig(kLlama8B), {});
  EXPECT_NEAR(limits.Decode(1, 1128).total(), 3.53e-3, 0.03e-3);
  EXPECT_NEAR(limits.Decode(256, 1128).total(), 13.7e-3, 0.2e-3);
  EXPECT_EQ(limits.Decode(1, 0).gemm, limits.Decode(8, 0).gemm);
  EXPECT_NEAR(limits.Decode(4096, 0).gemm / limits.Decode(2048, 0).gemm, 2.0, 1e-9);
  EXPECT_EQ(limits.Decode(8, 2000).attention, 2 * limits.Decode(8, 1000).attention);
}

TEST(RooflineTest, PromptsTogetherReadTheWeightsOnce) {
  const Roofline limits(ModelShape::FromConfig(kLlama8B), {});
  const std::vector<std::int32_t> one{16}, four{16, 16, 16, 16};
  EXPECT_EQ(limits.Prefill(one).gemm, limits.Prefill(four).gemm);
  const std::vector<std::int32_t> field(16, 4096);
  EXPECT_NEAR(16 * 4096 / limits.Prefill(field).total(), 52.4e3, 0.02 * 52.4e3);
}

TEST(RooflineTest, RanksShareTheWorkAndAddTheirSums) {
  const ModelShape shape = ModelShape::FromConfig(kLlama8B);
  const StepTime one = Roofline(shape, {}).Decode(64, 1128);
  const StepTime two = Roofline(shape, {}, {.tp = 2}).Decode(64, 1128);
  EXPECT_EQ(two.gemm, one.gemm / 2);
  EXPECT_EQ(one.collectives, 0.0);
  EXPECT_NEAR(two.collectives, 65 * (2.8e-6 + 64 * 4096 * 2 / 450e9), 1e-9);
}

TEST(RooflineTest, AnOfflineRunIsItsPromptsAndItsSteps) {
  const Roofline limits(ModelShape::FromConfig(kLlama8B), {});
  const std::vector<std::int32_t> prompts{100, 50};
  const double prefill = limits.Prefill(prompts).total();
  // the first token comes with the prompt; one request has a second and a third
  const double steps = limits.Decode(1, 101).total() + limits.Decode(1, 102).total();
  EXPECT_NEAR(limits.OfflineSeconds(std::vector<RequestLengths>{{100, 3}, {50, 1}}),
              prefill + steps, 1e-12);
}

TEST(RooflineTest, SimulationsGoByTheSameTimes) {
  const Roofline limits(ModelShape::FromConfig(kLlama8B), {});
  const StepTimeModel model = limits.StepTimes(256);
  StepFeatures features;
  for (int i = 0; i < 64; ++i) features.AddDecode(1127);
  EXPECT_NEAR(model.Of(features).total(), limits.Decode(64, 1128).total(), 1e-9);
}

TEST(RooflineTest, WhatDoesNotFitIsNegative) {
  const ModelShape shape = ModelShape::FromConfig(kLlama8B);
  EXPECT_NEAR(static_cast<double>(Roofline(shape, {}).KvTokens()), 896e3, 5e3);
  EXPECT_LT(Roofline(shape, {.memory = 16e9}).KvTokens(), 0);
}

TEST(RooflineTest, RefusesWhatCannotBe) {
  const ModelShape shape = ModelShape::FromConfig(kLlama8B);
  EXPECT_THROW(Roofline(shape, {.bandwidth = 0.0}), ConfigError);
  EXPECT_THROW(Roofline(shape, {.flops = std::nan("")}), ConfigError);
  EXPECT_THROW(Roofline(shape, {.memory = INFINITY}), ConfigError);
  EXPECT_THROW(Roofline(shape, {.utilization = 1.5}), ConfigError);
  EXPECT_THROW(Roofline(shape, {}, {.tp = 3}), ConfigError);
  EXPECT_THROW(Roofline(shape, {}, {.tp = 0}), ConfigError);
  EXPECT_THROW(Roofline(shape, {}, {.weight_bytes = 0.0}), ConfigError);
}

}  // namespace
}  // namespace runtime
