"""A conversation with a tool call through LangChain's and LlamaIndex's OpenAI adapters: the model is made to call the
tool, the tool runs, its result goes back, and an answer comes.

    frameworks.py URL MODEL
"""

import sys

from client_tests import ON, run
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

QUESTION = "Is the number seven odd?"


def is_odd(odd: bool) -> str:
    """Says whether a number is odd."""
    return "It is odd." if odd else "It is even."


class Tests:
    def __init__(self, url, model):
        self.url, self.model = url, model

    def langchain(self, **fields):
        fields = {"max_tokens": 300, "temperature": 0, "max_retries": 0, **fields}
        return ChatOpenAI(base_url=self.url, api_key="EMPTY", model=self.model, **fields)

    def converse(self, model):
        """LangChain's loop, by hand."""
        odd = tool(is_odd)
        messages = [HumanMessage(QUESTION)]
        called = model.bind_tools([odd], tool_choice="is_odd").invoke(messages)
        [call] = called.tool_calls
        assert call["name"] == "is_odd" and isinstance(call["args"]["odd"], bool), called
        messages += [called, odd.invoke(call)]
        assert messages[-1].content.startswith("It is ") and messages[-1].tool_call_id == call["id"]
        going_on = model.bind_tools([odd]).bind(max_tokens=16, extra_body=ON)
        answer = going_on.invoke(messages)
        assert answer.text and not answer.tool_calls and answer.usage_metadata["input_tokens"] > 100, answer
        streamed = None
        for chunk in going_on.stream(messages):
            streamed = chunk if streamed is None else streamed + chunk
        assert streamed.text == answer.text, (streamed, answer)

    def test_langchain(self):
        self.converse(self.langchain())

    def test_langchain_with_responses(self):
        self.converse(self.langchain(use_responses_api=True))

    def test_langchain_embeddings(self):
        # Without OpenAI's tokenizer, which it would download.
        model = OpenAIEmbeddings(base_url=self.url, api_key="EMPTY", model=self.model, check_embedding_ctx_length=False)
        one, two = model.embed_documents(["one", "two"])
        assert len(one) == 64 and one != two and model.embed_query("one") == one

    def test_llama_index(self):
        options = {"is_chat_model": True, "is_function_calling_model": True, "max_tokens": 300, "temperature": 0}
        model = OpenAILike(api_base=self.url, api_key="EMPTY", model=self.model, max_retries=0, **options)
        odd = FunctionTool.from_defaults(is_odd)
        history = [ChatMessage(role="user", content=QUESTION)]
        called = model.chat_with_tools([odd], chat_history=history, tool_choice="is_odd")
        [call] = model.get_tool_calls_from_response(called)
        assert call.tool_name == "is_odd" and isinstance(call.tool_kwargs["odd"], bool), called
        result = odd.call(**call.tool_kwargs)
        assert result.content.startswith("It is ")
        results = ChatMessage(role="tool", content=result.content, additional_kwargs={"tool_call_id": call.tool_id})
        history += [called.message, results]
        answer = model.chat_with_tools([odd], chat_history=history, max_tokens=16, extra_body=ON)
        assert answer.message.content and not model.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
        *_, last = model.stream_chat_with_tools([odd], chat_history=history, max_tokens=16, extra_body=ON)
        assert last.message.content == answer.message.content


if __name__ == "__main__":
    run(Tests(*sys.argv[1:]))
