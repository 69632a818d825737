// What Python's engine said to some requests: a fixture of conftest.py writes the file
// $EXPECTED_OUTPUTS, one request a line, its fields separated by tabs.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "engine_testing.h"

namespace runtime {

using Words = std::vector<std::string>;

inline Words Split(const std::string& line, char separator) {
  Words parts;
  std::istringstream stream(line);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

// The lines that begin with `kind`; none where Python has not been asked.
inline std::vector<Words> ExpectedLines(const std::string& kind) {
  const char* path = std::getenv("EXPECTED_OUTPUTS");
  std::ifstream file(path == nullptr ? "" : path);
  std::vector<Words> found;
  for (std::string line; std::getline(file, line);) {
    if (Words words = Split(line, '\t'); words.front() == kind) found.push_back(std::move(words));
  }
  return found;
}

// `lines`: "generate", seed, temperature, prompt, ids, text; all of them run at once.
inline void ExpectPythonsTokens(Engine& engine, const std::vector<Words>& lines) {
  std::vector<RequestId> ids;
  for (const Words& line : lines) {
    ids.push_back(engine.Submit({.prompt = line[3],
                                 .temperature = std::stod(line[2]),
                                 .seed = std::stoll(line[1]),
                                 .max_tokens = 24}));
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const Output output = Read(engine, ids[i]);
    std::string token_ids;
    for (const TokenId id : output.token_ids) token_ids += std::to_string(id) + " ";
    EXPECT_EQ(token_ids, lines[i][4]) << lines[i][3];
    EXPECT_EQ(output.text, lines[i].size() > 5 ? lines[i][5] : "") << lines[i][3];
  }
}

}  // namespace runtime
