// Length-prefixed messages between rank 0 and one other rank, over a socket pair of one host.
//
//   uint32 bytes that follow | uint32 kind | per field: uint32 bytes, the bytes
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace runtime {

enum class MessageKind : std::uint32_t {
  kHello = 1,     // to a rank, first: its rank, the number of ranks, the pid of rank 0
  kBytes = 2,     // to a rank: what Launcher::Send was given
  kPhase = 3,     // from a rank: what it does now
  kExchange = 4,  // either way: one rank's contribution, or everybody's
  kFailed = 5,    // from a rank, last: type, cause, hint, "1" if another rank is the reason
};

struct Message {
  MessageKind kind;
  std::vector<std::string> fields;
};

// Most bytes of one message.
inline constexpr std::size_t kMaxMessageBytes = std::size_t{64} << 20;

// Throws CapacityError for a message above kMaxMessageBytes.
std::string Encode(const Message& message);

// Puts messages together from what a socket yields.
class MessageBuffer {
 public:
  void Append(std::span<const char> bytes) { bytes_.append(bytes.data(), bytes.size()); }

  // The next whole message. Throws EngineDead for bytes that are none.
  std::optional<Message> Next();

 private:
  std::string bytes_;
};

// Sends all of it, or returns false: the other side is gone, or `timeout_s` passed. No signal is
// raised.
bool SendAll(int socket, const Message& message, double timeout_s);

enum class Received { kMessages, kNothing, kEnd };

// Reads what has arrived without waiting.
Received ReceiveInto(int socket, MessageBuffer& buffer);

}  // namespace runtime
