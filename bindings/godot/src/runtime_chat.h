// A Godot node that answers: loads a model, talks, and works within a budget of each frame. Over include/runtime.hpp.
#ifndef RUNTIME_CHAT_H
#define RUNTIME_CHAT_H

#include <godot_cpp/classes/node.hpp>
#include <godot_cpp/variant/string.hpp>

#include <runtime.hpp>

namespace godot {

/// Signals: loaded(), failed(message), text(piece), answered(whole).
class RuntimeChat : public Node {
    GDCLASS(RuntimeChat, Node)

public:
    /// Begins to load a .gguf file; `loaded` or `failed` follows. False where that could not begin.
    bool load(const String &path);
    /// Says something to the model; `text` follows for each piece, then `answered`. False while it speaks, or before `loaded`.
    bool say(const String &words);
    /// Ends the answer.
    void cancel();
    /// Microseconds of each frame.
    void set_budget_us(int64_t budget) { budget_us = budget; }
    int64_t get_budget_us() const { return budget_us; }

    void _process(double delta) override;

protected:
    static void _bind_methods();

private:
    void heard(const runtime::event &event);

    int64_t budget_us = 4000;
    runtime::engine engine;
    runtime::model model;
    runtime::session session;
    runtime::request speaking;
    String whole;
};

} // namespace godot

#endif // RUNTIME_CHAT_H
