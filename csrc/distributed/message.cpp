#include "distributed/message.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "runtime/error.h"

namespace runtime {
namespace {

constexpr std::size_t kWord = sizeof(std::uint32_t);

void Put(std::string& out, std::size_t value) {
  const auto word = static_cast<std::uint32_t>(value);
  out.append(reinterpret_cast<const char*>(&word), kWord);
}

std::uint32_t Get(const char* at) {
  std::uint32_t word;
  std::memcpy(&word, at, kWord);
  return word;
}

[[noreturn]] void FailMalformed() { throw EngineDead("a message between ranks is malformed"); }

Message Decode(const char* at, std::size_t size) {
  Message message{static_cast<MessageKind>(Get(at)), {}};
  const char* const end = at + size;
  for (at += kWord; at != end;) {
    if (static_cast<std::size_t>(end - at) < kWord) FailMalformed();
    const std::size_t bytes = Get(at);
    at += kWord;
    if (bytes > static_cast<std::size_t>(end - at)) FailMalformed();
    message.fields.emplace_back(at, bytes);
    at += bytes;
  }
  return message;
}

}  // namespace

std::string Encode(const Message& message) {
  std::size_t size = kWord;
  for (const std::string& field : message.fields) size += kWord + field.size();
  if (size > kMaxMessageBytes) {
    throw CapacityError("a message of " + std::to_string(size) + " bytes between ranks: at most " +
                        std::to_string(kMaxMessageBytes) + " are possible");
  }
  std::string out;
  out.reserve(kWord + size);
  Put(out, size);
  Put(out, static_cast<std::uint32_t>(message.kind));
  for (const std::string& field : message.fields) {
    Put(out, field.size());
    out += field;
  }
  return out;
}

std::optional<Message> MessageBuffer::Next() {
  if (bytes_.size() < kWord) return std::nullopt;
  const std::size_t size = Get(bytes_.data());
  if (size < kWord || size > kMaxMessageBytes) FailMalformed();
  if (bytes_.size() < kWord + size) return std::nullopt;
  Message message = Decode(bytes_.data() + kWord, size);
  bytes_.erase(0, kWord + size);
  return message;
}

bool SendAll(int socket, const Message& message, double timeout_s) {
  const std::string bytes = Encode(message);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t n =
        send(socket, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      sent += static_cast<std::size_t>(n);
    } else if (errno != EAGAIN && errno != EINTR) {
      return false;
    } else if (std::chrono::steady_clock::now() > deadline) {
      return false;
    } else {
      pollfd writable{socket, POLLOUT, 0};
      poll(&writable, 1, 20);
    }
  }
  return true;
}

Received ReceiveInto(int socket, MessageBuffer& buffer) {
  bool any = false;
  char bytes[4096];
  for (;;) {
    const ssize_t n = recv(socket, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n > 0) {
      buffer.Append({bytes, static_cast<std::size_t>(n)});
      any = true;
    } else if (n < 0 && errno == EINTR) {
      continue;
    } else if (n < 0 && errno == EAGAIN) {
      return any ? Received::kMessages : Received::kNothing;
    } else {
      return Received::kEnd;
    }
  }
}

}  // namespace runtime
