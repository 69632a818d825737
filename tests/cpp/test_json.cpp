#include <gtest/gtest.h>

#include <random>
#include <string>
#include <string_view>

#include "common/json.h"
#include "common/nearest.h"

namespace runtime {
namespace {

std::string Refusal(std::string_view text) {
  try {
    return "taken: " + ParseJson(text).Shown();
  } catch (const JsonError& e) {
    return e.what();
  }
}

TEST(JsonTest, ReadsEveryKindOfValue) {
  const Json json = ParseJson(
      R"( {"a": [1, -0.5e2, true, null], "b": {"c": "\u00e9\n\ud83d\ude00"}, "n": 9223372036854775807} )");
  const Json::Array& values = *json.Find("a")->array();
  EXPECT_EQ(*values[0].integer(), 1);
  EXPECT_EQ(values[1].number(), -50.0);
  EXPECT_EQ(values[1].integer(), nullptr);
  EXPECT_TRUE(*values[2].boolean());
  EXPECT_TRUE(values[3].is_null());
  EXPECT_EQ(*json.Find("b")->Find("c")->string(), "é\n😀");
  EXPECT_EQ(*json.Find("n")->integer(), INT64_MAX);
  EXPECT_EQ(json.Find("d"), nullptr);
}

TEST(JsonTest, TheLastOfEqualNamesCounts) {
  EXPECT_EQ(*ParseJson(R"({"a": 1, "a": 2})").Find("a")->integer(), 2);
}

TEST(JsonTest, IntegersThatDoNotFitAreReal) {
  const Json json = ParseJson("92233720368547758080");
  EXPECT_EQ(json.integer(), nullptr);
  EXPECT_EQ(json.number(), 92233720368547758080.0);
}

TEST(JsonTest, RefusalsSayLineAndColumn) {
  EXPECT_EQ(Refusal("{\"a\": 1,\n \"b\" 2}"), "line 2, column 6: expected ':', found '2'");
  EXPECT_EQ(Refusal("[1, 2"), "line 1, column 6: expected ',' or ']', found the end");
  EXPECT_EQ(Refusal(""), "line 1, column 1: expected a value, found the end");
  EXPECT_EQ(Refusal("\n\n NaN"), "line 3, column 2: expected a value, found 'N'");
  EXPECT_EQ(Refusal("[1]\n[2]"), "line 2: a second value after the document");
}

TEST(JsonTest, RefusesWhatJsonDoesNotHave) {
  for (const char* text : {"01",
                           "+1",
                           "1.",
                           ".5",
                           "1e",
                           "-",
                           "[1,]",
                           "{\"a\":1,}",
                           "{a:1}",
                           "'a'",
                           "nul",
                           "\"\\x\"",
                           "\"\\u12g4\"",
                           "\"\\ud800\"",
                           "\"\\ud800\\u0041\"",
                           "\"a",
                           "\"\n\"",
                           "\"\xff\"",
                           "\"\xc0\x80\"",
                           "\"\xed\xa0\x80\"",
                           "1e999",
                           "tru",
                           "\x01",
                           "{\"a\":1 \"b\":2}"}) {
    EXPECT_EQ(Refusal(text).find("taken"), std::string::npos) << text;
  }
}

TEST(JsonTest, DepthIsBounded) {
  const std::string deep(JsonReader::kMaxDepth, '['), close(JsonReader::kMaxDepth, ']');
  EXPECT_EQ(Refusal(deep + close).find("taken"), 0u);
  EXPECT_NE(Refusal("[" + deep + close + "]").find("nested more than 64 deep"), std::string::npos);
  EXPECT_NE(Refusal(std::string(1'000'000, '[')).find("nested"), std::string::npos);
}

TEST(JsonTest, LinesAreReadOneByOne) {
  JsonReader reader("{\"a\": 1}\n\n[2]\n");
  EXPECT_EQ(*reader.Next()->Find("a")->integer(), 1);
  EXPECT_EQ(reader.line(), 1);
  EXPECT_EQ(reader.Next()->array()->size(), 1u);
  EXPECT_EQ(reader.line(), 3);
  EXPECT_FALSE(reader.Next());
}

TEST(JsonTest, WhatIsWrittenReadsBackAsTheSame) {
  const Json json(Json::Object{{"text", Json("quote \" slash \\ tab \t é")},
                               {"real", Json(0.1 + 0.2)},
                               {"whole", Json(2.0)},
                               {"list", Json(Json::Array{Json(-7), Json(false), Json()})}});
  EXPECT_EQ(ParseJson(json.Shown(std::string::npos)), json);
  EXPECT_EQ(JsonNumber(2.0), "2.0");
  EXPECT_EQ(JsonNumber(1e300 * 1e300), "null");
}

TEST(JsonTest, LongValuesAreShownByTheirStart) {
  const std::string shown = Json(std::string(100, 'x')).Shown(20);
  EXPECT_EQ(shown, "\"" + std::string(16, 'x') + "...");
  EXPECT_EQ(Json(std::string_view("ééééééééé")).Shown(9), "\"éé...");  // no half letters
}

// Damaged text is refused with JsonError or means something that can be written and read again.
TEST(JsonTest, DamagedTextIsReadOrRefused) {
  const std::string whole =
      R"({"scenario": "decode_b1", "tpot_ms": [5.39, 5.41e0, -1], "é": {"p50": null, "ok": true}})";
  std::mt19937 random(7);
  int num_read = 0;
  for (int i = 0; i < 50'000; ++i) {
    std::string text = whole;
    for (int changes = 1 + static_cast<int>(random() % 3); changes > 0; --changes) {
      const std::size_t at = random() % text.size();
      const char byte = static_cast<char>(random() % 256);
      if (random() % 3 == 0) {
        text.erase(at, 1 + random() % 4);
      } else if (random() % 2 == 0) {
        text.insert(at, 1, byte);
      } else {
        text[at] = byte;
      }
    }
    try {
      const Json json = ParseJson(text);
      EXPECT_EQ(ParseJson(json.Shown(std::string::npos)), json) << text;
      ++num_read;
    } catch (const JsonError&) {
    }
  }
  EXPECT_GT(num_read, 1000);
}

TEST(DidYouMeanTest, NamesUpToThreeNearOnes) {
  constexpr std::string_view kNames[] = {"scheduler", "simulate", "compare", "serve"};
  EXPECT_EQ(DidYouMean("compar", kNames), "; did you mean 'compare'?");
  EXPECT_EQ(DidYouMean("xyz", kNames), "");
  EXPECT_EQ(DidYouMean("", kNames), "");
  EXPECT_EQ(DidYouMean(std::string(100'000, 'a'), kNames), "");
  constexpr std::string_view kNear[] = {"aab", "aac", "aad", "aa"};
  EXPECT_EQ(DidYouMean("aaa", kNear), "; did you mean 'aab' or 'aac' or 'aad'?");
}

}  // namespace
}  // namespace runtime
