# A character: add a RuntimeChat node as its child.
extends Node

@onready var chat: RuntimeChat = $RuntimeChat

func _ready() -> void:
	chat.loaded.connect(func(): chat.say("Who are you?"))
	chat.text.connect(func(piece: String): $Label.text += piece)
	chat.failed.connect(push_error)
	chat.load(ProjectSettings.globalize_path("res://model.gguf"))
