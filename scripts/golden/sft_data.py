"""The 48 chat rows of the fine-tuning goldens.

Reads   nothing.
Writes  tests/golden/sft/data.jsonl   {"messages": [...]} a line: single turns, several turns, system turns, code,
        digits, other scripts; the text is small on purpose, so that twelve optimizer steps are quick.
Rerun   python scripts/golden/sft_data.py
"""

import json

from common import GOLDEN

SYSTEM = "You answer briefly."

# A row: turns in order, user first; a leading "S:" is the system's turn.
ROWS = [
    ["What is the tallest mountain on Earth?", "Mount Everest."],
    ["S:" + SYSTEM, "Name a primary colour.", "Red."],
    ["Add 17 and 25.", "17 + 25 = 42.", "Now double it.", "84."],
    ["Translate 'good morning' into German.", "Guten Morgen."],
    ["Write a line of Python that prints hello.", "print(\"hello\")"],
    ["S:You are a pirate.", "Where is the treasure?", "Arr, under the old oak by the bay!", "How deep?", "Six feet, matey."],
    ["How many legs does a spider have?", "A spider has eight legs."],
    ["What does HTTP stand for?", "HyperText Transfer Protocol."],
    ["Give me a synonym for happy.", "Joyful."],
    ["S:" + SYSTEM, "Who wrote Hamlet?", "William Shakespeare wrote Hamlet.", "When?", "Around 1600."],
    ["What is the chemical symbol for gold?", "Au."],
    ["北京在哪里？", "北京在中国。"],
    ["Finish: roses are red,", "violets are blue."],
    ["Which planet is known as the red planet?", "Mars, because of the iron oxide on its surface."],
    ["What is 9 times 8?", "72", "And 9 times 9?", "81", "And 9 times 10?", "90"],
    ["Tell me a fact about whales.", "Blue whales are the largest animals that have ever lived."],
    ["S:Reply in capitals.", "Say hello.", "HELLO."],
    ["Is water wet? 🙂", "That depends on the definition. 🙂"],
    ["Sort these: 3, 1, 2.", "1, 2, 3"],
    ["What is the boiling point of water?", "100 degrees Celsius at sea level."],
    ["Which language is spoken in Brazil?", "Portuguese."],
    ["Write a haiku about rain.", "Soft rain on the roof\nA cat asleep by the stove\nThe kettle whispers"],
    ["S:" + SYSTEM, "What is the capital of Japan?", "Tokyo."],
    ["Convert 5 km to metres.", "5 km is 5000 metres."],
    ["What is the opposite of cold?", "Hot."],
    ["Spell 'necessary'.", "n-e-c-e-s-s-a-r-y", "Thank you!", "You're welcome."],
    ["What colour is a ripe banana?", "Yellow."],
    ["Explain recursion in one sentence.", "A function is recursive when it calls itself on a smaller problem."],
    ["How do I stop a running program in a terminal?", "Press Ctrl+C."],
    ["Qui a peint la Joconde ?", "Léonard de Vinci."],
    ["S:You are a chef.", "What goes well with tomatoes?", "Basil, olive oil and a pinch of salt."],
    ["What is the square root of 144?", "12."],
    ["Name three fruits.", "Apple, pear and plum."],
    ["Is 17 a prime number?", "Yes, 17 is prime.", "And 18?", "No, 18 = 2 * 3 * 3."],
    ["What do bees make?", "Honey and wax."],
    ["Who was the first person on the Moon?", "Neil Armstrong, on 20 July 1969."],
    ["Complete: fn add(a: i32, b: i32) -> i32 {", "fn add(a: i32, b: i32) -> i32 {\n    a + b\n}"],
    ["What is the freezing point of water in Fahrenheit?", "32 degrees Fahrenheit."],
    ["S:" + SYSTEM, "Which ocean is the largest?", "The Pacific Ocean.", "And the smallest?", "The Arctic Ocean."],
    ["Give an antonym of 'ancient'.", "Modern."],
    ["How many minutes are in two hours?", "120 minutes."],
    ["What is a group of wolves called?", "A pack."],
    ["Complete the sequence: 2, 4, 8, 16,", "32"],
    ["Привет! Как дела?", "Хорошо, спасибо!"],
    ["Which gas do plants absorb?", "Carbon dioxide."],
    ["Write 2026 in Roman numerals.", "MMXXVI"],
    ["S:You are a librarian.", "Can you suggest a classic novel?", "Try Middlemarch by George Eliot."],
    ["Goodbye!", "Goodbye, and take care."],
]


def main():
    lines = []
    for row in ROWS:
        messages = []
        if row[0].startswith("S:"):
            messages.append({"role": "system", "content": row[0][2:]})
            row = row[1:]
        assert len(row) % 2 == 0
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(row)]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    assert len(lines) == 48
    path = GOLDEN / "sft" / "data.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
