#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace v1 = presage::v1;

namespace {

float little_endian_float(const unsigned char* bytes) {
  const std::uint32_t bits = bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<std::uint32_t>(bytes[3]) << 24;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

std::vector<Action> checked_actions(const v1::Plan& plan, const v1::ActionSpec& bounds) {
  const auto& tensor = plan.actions();
  const std::int64_t width = bounds.low_size();
  if (plan.stop_reason() == v1::STOP_REASON_UNSPECIFIED) throw std::runtime_error("plan: stop_reason must be set");
  if (bounds.high_size() != width) throw std::runtime_error("model: low and high must have the same length");
  if (tensor.dtype() != v1::ELEMENT_TYPE_FLOAT32 || tensor.shape_size() != 2 || tensor.shape(1) != width) {
    throw std::runtime_error("plan: actions must be float32 [time, " + std::to_string(width) + "]");
  }
  // Counted from the bytes that are there, not from the shape: nothing announced is ever allocated.
  const std::uint64_t row = 4 * static_cast<std::uint64_t>(width);
  const std::uint64_t time = row == 0 ? 0 : tensor.data().size() / row;
  if (time == 0 || tensor.data().size() % row != 0 || tensor.shape(0) != static_cast<std::int64_t>(time)) {
    throw std::runtime_error("plan: actions must have as many bytes as their shape says");
  }
  std::vector<Action> actions(time, Action(width));
  const auto* bytes = reinterpret_cast<const unsigned char*>(tensor.data().data());
  for (std::uint64_t step = 0; step < time; ++step) {
    for (int entry = 0; entry < width; ++entry, bytes += 4) {
      const float value = actions[step][entry] = little_endian_float(bytes);
      const float low = static_cast<float>(bounds.low(entry)), high = static_cast<float>(bounds.high(entry));
      if (!std::isfinite(value) || value < low || value > high) {
        throw std::runtime_error("plan: action " + std::to_string(step) + " entry " + std::to_string(entry) +
                                 " must be within [" + std::to_string(low) + ", " + std::to_string(high) + "], got " +
                                 std::to_string(value));
      }
    }
  }
  return actions;
}

void Follower::seen(std::uint64_t sequence, Clock::time_point now) { seen_[sequence] = {taken_, now}; }

void Follower::follow(std::uint64_t sequence, std::vector<Action> actions, Clock::time_point now) {
  const auto origin = seen_.find(sequence);
  if (origin == seen_.end() || sequence <= sequence_) return;
  actions_ = std::move(actions);
  sequence_ = sequence;
  joined_ = origin->second.taken;
  made_at_ = origin->second.at;
  round_trip_ = now - made_at_;
  seen_.erase(seen_.begin(), std::next(origin));
}

std::optional<Action> Follower::next(Clock::time_point now) {
  if (now - made_at_ > stale_after_ || executed() >= actions_.size()) return std::nullopt;
  const Action action = actions_[executed()];
  ++taken_;
  return action;
}

std::uint32_t Follower::executed() const {
  return sequence_ == 0 ? 0 : static_cast<std::uint32_t>(taken_ - joined_);
}

std::uint32_t Follower::committed(double rate_hz) const {
  const std::size_t left = actions_.size() - std::min<std::size_t>(actions_.size(), executed());
  const double meanwhile = std::ceil(std::chrono::duration<double>(round_trip_).count() * rate_hz);
  return static_cast<std::uint32_t>(std::min<double>(static_cast<double>(left), meanwhile));
}
