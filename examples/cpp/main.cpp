// A robot that asks Presage for one plan, then follows plans in a control loop: an image out and an action in each tick.
//
// The robot here is a file and two words: its camera's newest image is a file that something else keeps writing, and
// what it does is printed, "act v v ..." or "stop". Replace `see`, `act` and `stop` for a robot of one's own.
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <thread>

#include "client.h"
#include "control_stream.h"
#include "plan.h"

namespace v1 = presage::v1;
using namespace std::chrono_literals;

namespace {

std::atomic<bool> asked_to_stop{false};

struct Options {
  std::string address = "127.0.0.1:50051", camera, goal, ca_file;
  double seconds = 10, budget_ms = 80, stale_ms = 500;
};

constexpr auto kUsage =
    "usage: presage_robot --camera IMAGE --goal IMAGE [--address HOST:PORT] [--seconds S] [--budget-ms MS]\n"
    "                     [--stale-ms MS] [--ca FILE]\n"
    "IMAGE is a JPEG, PNG or WebP file; the camera's is read anew each tick. PRESAGE_API_KEY is sent if it is set.\n";

struct Usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Options parse(int count, char** words) {
  Options options;
  const std::map<std::string, std::string*> texts = {{"--address", &options.address},
                                                     {"--camera", &options.camera},
                                                     {"--goal", &options.goal},
                                                     {"--ca", &options.ca_file}};
  const std::map<std::string, double*> numbers = {
      {"--seconds", &options.seconds}, {"--budget-ms", &options.budget_ms}, {"--stale-ms", &options.stale_ms}};
  for (int i = 1; i < count; i += 2) {
    const std::string name = words[i];
    if (i + 1 == count) throw Usage(name + " must be followed by a value");
    if (const auto text = texts.find(name); text != texts.end()) {
      *text->second = words[i + 1];
    } else if (const auto number = numbers.find(name); number != numbers.end()) {
      char* end = nullptr;
      *number->second = std::strtod(words[i + 1], &end);
      if (*end != '\0' || !(*number->second > 0 && *number->second < 1e6)) {
        throw Usage(name + " must be a number above 0 and below 1000000, got " + words[i + 1]);
      }
    } else {
      throw Usage(name + " is not an option");
    }
  }
  if (options.camera.empty() || options.goal.empty()) throw Usage("--camera and --goal must be given");
  return options;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  if (!file || !(bytes << file.rdbuf())) throw std::runtime_error("cannot read " + path);
  return bytes.str();
}

// The robot.

v1::Observation see(const Options& options) {
  v1::Observation observation;
  observation.add_images()->set_encoded(read_file(options.camera));
  const auto now = std::chrono::system_clock::now().time_since_epoch();  // the robot's own clock; it comes back as it is
  const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
  observation.mutable_capture_time()->set_seconds(nanoseconds / 1000000000);
  observation.mutable_capture_time()->set_nanos(static_cast<int>(nanoseconds % 1000000000));
  return observation;
}

void act(const Action& action) {
  std::cout << "act";
  for (const float value : action) std::cout << ' ' << value;
  std::cout << std::endl;
}

void stop() { std::cout << "stop" << std::endl; }  // for joint velocities: all of them 0

struct StopAtTheEnd {  // however the loop is left
  ~StopAtTheEnd() { stop(); }
};

void plan_once(Client& client, const v1::Model& model, const std::string& goal, const Options& options) {
  v1::PlanRequest request;
  *request.mutable_observation() = see(options);
  request.set_goal_id(goal);
  request.set_budget_ms(500);
  const auto plan = client.plan(request, 5s);
  const auto actions = checked_actions(plan, model.action());
  std::cerr << "one plan: " << actions.size() << " actions within bounds, stopped by "
            << v1::StopReason_Name(plan.stop_reason()) << " after " << plan.iterations_done()
            << " iterations, goal distance " << plan.goal_distance() << " now, cost " << plan.cost() << "\n";
}

struct Counts {
  int ticks = 0, plans = 0, failed = 0, stopped = 0, streams = 0;
};

// Takes what the stream has heard into the follower.
void listen(ControlStream& stream, const v1::Model& model, Follower& follower, Counts& counts) {
  const auto reply = stream.take();
  if (!reply) return;
  if (reply->has_error()) {
    std::cerr << "no plan: " << reply->error().reason() << ": " << reply->error().message() << "\n";
    ++counts.failed;
    return;
  }
  const auto& plan = reply->plan().plan();
  follower.follow(plan.observation_sequence(), checked_actions(plan, model.action()), Clock::now());
  ++counts.plans;
}

Counts control(Client& client, const v1::Model& model, const std::string& session, const Options& options) {
  const StopAtTheEnd at_the_end;
  const double rate_hz = model.action().rate_hz();
  const auto period = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(1 / rate_hz));
  const auto begin = Clock::now(), end = begin + std::chrono::milliseconds(static_cast<int>(1000 * options.seconds));
  Follower follower(std::chrono::milliseconds(static_cast<int>(options.stale_ms)));
  v1::ControlStart start;
  start.set_session_id(session);
  start.set_budget_ms(options.budget_ms);

  Counts counts;
  std::unique_ptr<ControlStream> stream;
  std::uint64_t sequence = 0;
  auto dial_at = begin;
  for (auto tick = begin; tick < end && !asked_to_stop; tick += period, ++counts.ticks) {
    std::this_thread::sleep_until(tick);
    if (stream && stream->over()) {
      const auto status = stream->finish();
      stream.reset();
      std::cerr << "stream over: " << describe(status) << "\n";
      // A stream's time is up, or the service is away for a while. Anything else would only happen again.
      const bool may_pass = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ||
                            status.error_code() == grpc::StatusCode::UNAVAILABLE;
      if (!may_pass) throw CallFailed("Planning.Control", status);
      dial_at = tick + 500ms;
    }
    if (!stream && tick >= dial_at) {
      stream = std::make_unique<ControlStream>(client, start, 30s);
      ++counts.streams;
    }
    if (stream) {
      listen(*stream, model, follower, counts);
      v1::ControlObservation observation;
      *observation.mutable_observation() = see(options);
      observation.mutable_observation()->set_sequence(sequence + 1);
      observation.set_executed(follower.executed());
      observation.set_plan_sequence(follower.sequence());
      observation.set_committed(follower.committed(rate_hz));
      if (stream->send(std::move(observation))) follower.seen(++sequence, Clock::now());
    }
    if (const auto action = follower.next(Clock::now())) {
      act(*action);
    } else {
      stop();
      ++counts.stopped;
    }
  }
  return counts;
}

int run(const Options& options) {
  const char* key = std::getenv("PRESAGE_API_KEY");
  Client client(options.address, options.ca_file, key == nullptr ? "" : key);
  client.wait_ready(30s);
  const auto model = client.model();
  if (!model.has_action()) throw std::runtime_error("model " + model.name() + " only embeds: it cannot plan");
  std::cerr << "model " << model.name() << ", " << model.action().rate_hz() << " actions a second\n";
  const auto goal = client.create_goal(read_file(options.goal));
  plan_once(client, model, goal, options);
  const auto session = client.create_session(goal);
  const auto counts = control(client, model, session, options);
  std::cerr << counts.ticks << " ticks, " << counts.plans << " plans, " << counts.failed << " failed, "
            << counts.stopped << " ticks stopped, " << counts.streams << " streams\n";
  client.delete_session(session);
  return 0;
}

}  // namespace

int main(int count, char** words) {
  std::signal(SIGINT, [](int) { asked_to_stop = true; });
  std::signal(SIGTERM, [](int) { asked_to_stop = true; });
  try {
    return run(parse(count, words));
  } catch (const Usage& error) {
    std::cerr << error.what() << "\n" << kUsage;
    return 2;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
