#include "runtime_chat.h"

#include <godot_cpp/classes/json.hpp>
#include <godot_cpp/core/class_db.hpp>
#include <godot_cpp/variant/array.hpp>
#include <godot_cpp/variant/dictionary.hpp>

using namespace godot;

static String text_of(std::string_view words) { return String::utf8(words.data(), (int)words.size()); }

void RuntimeChat::_bind_methods() {
    ClassDB::bind_method(D_METHOD("load", "path"), &RuntimeChat::load);
    ClassDB::bind_method(D_METHOD("say", "words"), &RuntimeChat::say);
    ClassDB::bind_method(D_METHOD("cancel"), &RuntimeChat::cancel);
    ClassDB::bind_method(D_METHOD("set_budget_us", "budget"), &RuntimeChat::set_budget_us);
    ClassDB::bind_method(D_METHOD("get_budget_us"), &RuntimeChat::get_budget_us);
    ADD_PROPERTY(PropertyInfo(Variant::INT, "budget_us"), "set_budget_us", "get_budget_us");
    ADD_SIGNAL(MethodInfo("loaded"));
    ADD_SIGNAL(MethodInfo("failed", PropertyInfo(Variant::STRING, "message")));
    ADD_SIGNAL(MethodInfo("text", PropertyInfo(Variant::STRING, "piece")));
    ADD_SIGNAL(MethodInfo("answered", PropertyInfo(Variant::STRING, "whole")));
}

bool RuntimeChat::load(const String &path) {
    runtime::error error;
    runtime::engine_options options;
    options.run_mode = RUNTIME_RUN_STEPPED;
    session.reset();
    model.reset();
    if (!engine) engine = runtime::engine::create(options, &error);
    if (engine) model = engine.load(path.utf8().get_data(), {}, &error);
    if (error) emit_signal("failed", text_of(error.what()));
    return (bool)model;
}

bool RuntimeChat::say(const String &words) {
    if (!session || speaking) return false;
    Dictionary message;
    message["role"] = "user";
    message["content"] = words;
    Array messages;
    messages.append(message);
    runtime::error error;
    const CharString json = JSON::stringify(messages).utf8();
    whole = "";
    if (session.append_messages(json.get_data(), &error) == RUNTIME_OK) speaking = session.generate({}, &error);
    if (error) emit_signal("failed", text_of(error.what()));
    return (bool)speaking;
}

void RuntimeChat::cancel() {
    if (speaking) speaking.cancel();
}

void RuntimeChat::_process(double) {
    if (!engine) return;
    engine.step((uint32_t)budget_us);
    engine.poll([this](const runtime::event &event) { heard(event); });
}

void RuntimeChat::heard(const runtime::event &event) {
    if (event.is(RUNTIME_EVENT_MODEL_READY, model)) {
        runtime::error error;
        if (event.status == RUNTIME_OK) session = model.new_session(&error);
        if (session)
            emit_signal("loaded");
        else
            emit_signal("failed", event.status == RUNTIME_OK ? text_of(error.what()) : text_of(event.words()));
    } else if (event.is(RUNTIME_EVENT_TEXT, speaking)) {
        const String piece = text_of(event.words());
        whole += piece;
        emit_signal("text", piece);
    } else if (event.is(RUNTIME_EVENT_REQUEST_DONE, speaking)) {
        speaking = {};
        if (event.status == RUNTIME_OK || event.status == RUNTIME_ERROR_CANCELLED)
            emit_signal("answered", whole);
        else
            emit_signal("failed", text_of(event.words()));
    }
}
