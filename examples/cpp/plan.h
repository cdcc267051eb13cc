// A plan as numbers, checked before a robot sees them; and which of its actions comes next.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "presage/v1/models.pb.h"
#include "presage/v1/planning.pb.h"

using Action = std::vector<float>;
using Clock = std::chrono::steady_clock;

// The actions of `plan`, one after the other. Throws std::runtime_error for a tensor that does not add up, for numbers
// that are not finite or out of the model's bounds, and for a plan that does not say why its search stopped.
std::vector<Action> checked_actions(const presage::v1::Plan& plan, const presage::v1::ActionSpec& bounds);

// Follows the newest plan. A plan's first action belongs to the observation it was made from; by the time the plan
// arrives the robot is some actions further, and joins it there.
class Follower {
 public:
  explicit Follower(Clock::duration stale_after) : stale_after_(stale_after) {}

  // An observation was made now.
  void seen(std::uint64_t sequence, Clock::time_point now);
  // Its plan is here. One for an observation that was not made, or older than the present plan's, is left alone.
  void follow(std::uint64_t sequence, std::vector<Action> actions, Clock::time_point now);
  // The next action; nothing where the newest plan is used up, or was made from something seen too long ago.
  std::optional<Action> next(Clock::time_point now);

  std::uint64_t sequence() const { return sequence_; }  // the observation of the present plan; 0 before the first
  std::uint32_t executed() const;                // of the present plan, in actions
  std::uint32_t committed(double rate_hz) const; // will be executed while the next plan is made, as the last one took

 private:
  struct Seen {
    std::uint64_t taken;
    Clock::time_point at;
  };
  Clock::duration stale_after_;
  std::map<std::uint64_t, Seen> seen_;
  std::vector<Action> actions_;
  std::uint64_t sequence_ = 0, joined_ = 0, taken_ = 0;
  Clock::time_point made_at_{};
  Clock::duration round_trip_{};
};
