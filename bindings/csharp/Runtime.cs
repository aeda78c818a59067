// runtime.h for .NET: objects with SafeHandles, exceptions, events. netstandard2.1, so Unity takes it; C# 7.3; needs
// "allow unsafe code".
using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;
using System.Text;

namespace RuntimeEngine
{
    /// <summary>A call or its work failed.</summary>
    public sealed class RuntimeException : Exception
    {
        /// <summary>A RUNTIME_ERROR number.</summary>
        public int Code { get; }
        /// <summary>Its name: "RUNTIME_ERROR_IO".</summary>
        public string Name { get; }

        internal RuntimeException(int code, string message) : base(NameOf(code) + ": " + message)
        {
            Code = code;
            Name = NameOf(code);
        }

        private static string NameOf(int code) => Marshal.PtrToStringAnsi(Native.runtime_status_name(code));
    }

    internal delegate int Call(ref NativeError error);

    /// <summary>A handle that is released once, by the garbage collector at the latest.</summary>
    internal sealed class Handle : SafeHandle
    {
        private readonly ulong id;
        private readonly Func<Id, int> release;

        public Handle(Id id, Func<Id, int> release) : base(IntPtr.Zero, true)
        {
            this.id = id.Value;
            this.release = release;
            SetHandle(new IntPtr(1));
        }

        public override bool IsInvalid => id == 0;

        public ulong Number => id;

        protected override bool ReleaseHandle() => release(new Id { Value = id }) == 0;

        /// <summary>Calls with the number, which cannot be released meanwhile.</summary>
        public void Use(Func<Id, int> call)
        {
            bool held = false;
            try
            {
                DangerousAddRef(ref held);
                call(new Id { Value = id });
            }
            finally
            {
                if (held) DangerousRelease();
            }
        }
    }

    /// <summary>What all objects have in common. Children keep their parents alive: dispose in any order.</summary>
    public abstract class Owned : IDisposable
    {
        internal readonly Handle Handle;

        internal Owned(Id id, Func<Id, int> release)
        {
            Handle = new Handle(id, release);
        }

        /// <summary>What events of this object carry.</summary>
        public ulong Number => Handle.Number;

        /// <summary>Releases it now.</summary>
        public void Dispose() => Handle.Dispose();

        internal delegate int WithId(Id id, ref NativeError error);

        internal void Do(WithId call) => Handle.Use(id =>
        {
            Check((ref NativeError error) => call(id, ref error));
            return 0;
        });

        internal static unsafe void Check(Call call)
        {
            var error = new NativeError { StructSize = (uint)sizeof(NativeError) };
            int status = call(ref error);
            if (status == 0) return;
            throw new RuntimeException(status, Text(new IntPtr(error.Message), -1));
        }

        internal static unsafe string Text(IntPtr data, int len)
        {
            var bytes = (byte*)data;
            if (len < 0) for (len = 0; bytes[len] != 0; len++) { }
            return len == 0 ? "" : Encoding.UTF8.GetString(bytes, len);
        }

        internal static byte[] Bytes(string text) => Encoding.UTF8.GetBytes(text);

        internal static UIntPtr Len(byte[] bytes) => new UIntPtr((uint)bytes.Length);
    }

    /// <summary>What happened.</summary>
    public enum EventKind
    {
        /// <summary>A part of a model was loaded.</summary>
        ModelProgress,
        /// <summary>A model is ready, or was not loaded.</summary>
        ModelReady,
        /// <summary>More of an answer.</summary>
        Text,
        /// <summary>The end of a request.</summary>
        Done,
        /// <summary>An embedding.</summary>
        Embedding,
        /// <summary>Log-probabilities.</summary>
        Scores,
        /// <summary>A job is ready.</summary>
        TrainingReady,
        /// <summary>A step was done.</summary>
        TrainingStep,
        /// <summary>A job is over.</summary>
        TrainingDone,
        /// <summary>Memory has passed the soft limit.</summary>
        MemoryPressure,
    }

    /// <summary>One thing that happened: a copy, so it can be kept.</summary>
    public struct Event
    {
        /// <summary>What.</summary>
        public EventKind Kind;
        /// <summary>The Number of the object.</summary>
        public ulong Object;
        /// <summary>0, or why it failed.</summary>
        public int Status;
        /// <summary>Text, a stop string, or the error's message.</summary>
        public string Text;
        /// <summary>Bytes or steps done.</summary>
        public ulong Done;
        /// <summary>Of so many.</summary>
        public ulong Total;
        /// <summary>Of a training step.</summary>
        public double Loss;
    }

    /// <summary>A device and everything on it.</summary>
    public sealed class Engine : Owned
    {
        private readonly List<Event> kept = new List<Event>();

        private Engine(Id id) : base(id, Native.runtime_engine_release) { }

        /// <summary>Opens a device. backend: 0 auto, 1 CUDA, 2 wgpu, 3 CPU. stepped: Step does the work, once a frame.</summary>
        public static Engine Create(int backend = 0, bool stepped = false, ulong hardLimit = 0)
        {
            var options = new EngineOptionsNative { Backend = backend, RunMode = stepped ? 1 : 0, HardLimit = hardLimit };
            options.StructSize = (uint)Marshal.SizeOf(options);
            var id = new Id();
            Check((ref NativeError error) => Native.runtime_engine_create(ref options, out id, ref error));
            return new Engine(id);
        }

        /// <summary>The library's version.</summary>
        public static string Version => Marshal.PtrToStringAnsi(Native.runtime_version());

        /// <summary>Begins to load a model; see Model.Wait.</summary>
        public Model Load(string path, uint maxTokens = 0)
        {
            var options = new ModelOptionsNative { MaxTokens = maxTokens };
            options.StructSize = (uint)Marshal.SizeOf(options);
            var (bytes, made) = (Bytes(path), new Id());
            Do((Id id, ref NativeError e) => Native.runtime_model_load(id, bytes, Len(bytes), ref options, out made, ref e));
            return new Model(made);
        }

        /// <summary>Works for a while; true while there is more to do.</summary>
        public bool Step(uint budgetMicroseconds)
        {
            uint busy = 0;
            Do((Id id, ref NativeError e) => Native.runtime_engine_step(id, budgetMicroseconds, out busy, ref e));
            return busy != 0;
        }

        /// <summary>Waits for an event.</summary>
        public bool Wait(uint milliseconds)
        {
            uint ready = 0;
            Do((Id id, ref NativeError e) => Native.runtime_engine_wait(id, milliseconds, out ready, ref e));
            return ready != 0;
        }

        /// <summary>Takes what has happened. Never waits: call it once a frame, from one thread.</summary>
        public unsafe IReadOnlyList<Event> Poll()
        {
            kept.Clear();
            var events = stackalloc EventNative[16];
            events[0].StructSize = (uint)sizeof(EventNative);
            var count = UIntPtr.Zero;
            var place = new IntPtr(events);
            Do((Id id, ref NativeError e) => PollInto(id, place, out count, ref e));
            for (uint i = 0; i < (uint)count; i++)
            {
                ref EventNative from = ref events[i];
                kept.Add(new Event
                {
                    Kind = (EventKind)from.Type,
                    Object = from.Object,
                    Status = from.Status,
                    Text = Text(from.Text, (int)from.TextLen),
                    Done = from.Done,
                    Total = from.Total,
                    Loss = from.Loss,
                });
            }
            return kept;
        }

        private static unsafe int PollInto(Id id, IntPtr events, out UIntPtr count, ref NativeError error) =>
            Native.runtime_engine_poll(id, (EventNative*)events, new UIntPtr(16), out count, ref error);
    }

    /// <summary>A model of an engine.</summary>
    public sealed class Model : Owned
    {
        internal Model(Id id) : base(id, Native.runtime_model_release) { }

        /// <summary>Waits until it can be used.</summary>
        public void Wait(uint milliseconds = uint.MaxValue) =>
            Do((Id id, ref NativeError e) => Native.runtime_model_wait(id, milliseconds, ref e));

        /// <summary>An empty session.</summary>
        public Session NewSession()
        {
            var made = new Id();
            Do((Id id, ref NativeError e) => Native.runtime_session_create(id, out made, ref e));
            return new Session(made);
        }

        /// <summary>An adapter in PEFT's format.</summary>
        public Adapter LoadAdapter(string path)
        {
            var (bytes, made) = (Bytes(path), new Id());
            Do((Id id, ref NativeError e) => Native.runtime_adapter_load(id, bytes, Len(bytes), out made, ref e));
            return new Adapter(made);
        }

        /// <summary>A training job.</summary>
        public Training NewTraining(TrainingOptions options)
        {
            options.StructSize = (uint)Marshal.SizeOf(options);
            var made = new Id();
            Do((Id id, ref NativeError e) => Native.runtime_training_create(id, ref options, out made, ref e));
            return new Training(made);
        }
    }

    /// <summary>LoRA weights of a model.</summary>
    public sealed class Adapter : Owned
    {
        internal Adapter(Id id) : base(id, Native.runtime_adapter_release) { }

        /// <summary>As a folder that PEFT reads.</summary>
        public void Save(string path)
        {
            var bytes = Bytes(path);
            Do((Id id, ref NativeError e) => Native.runtime_adapter_save(id, bytes, Len(bytes), ref e));
        }
    }

    /// <summary>A request that runs. It owns nothing: its handle ends with its last event.</summary>
    public readonly struct Request
    {
        private readonly Id id;

        internal Request(Id id)
        {
            this.id = id;
        }

        /// <summary>What its events carry.</summary>
        public ulong Number => id.Value;

        /// <summary>Ends it at once. Nothing happens to one that has ended.</summary>
        public void Cancel()
        {
            var error = new NativeError();
            Native.runtime_request_cancel(id, ref error);
        }
    }

    /// <summary>A text that grows. One thread at a time.</summary>
    public sealed class Session : Owned
    {
        internal Session(Id id) : base(id, Native.runtime_session_release) { }

        /// <summary>Appends text as it stands.</summary>
        public void AppendText(string text)
        {
            var bytes = Bytes(text);
            Do((Id id, ref NativeError e) => Native.runtime_session_append_text(id, bytes, Len(bytes), ref e));
        }

        /// <summary>Appends messages: a JSON list, as OpenAI's API has them.</summary>
        public void AppendMessages(string json)
        {
            var bytes = Bytes(json);
            Do((Id id, ref NativeError e) => Native.runtime_session_append_messages(id, bytes, Len(bytes), ref e));
        }

        /// <summary>The adapters that answer from now on.</summary>
        public void SetAdapters(params Adapter[] adapters)
        {
            var refs = new AdapterRef[adapters.Length];
            for (int i = 0; i < refs.Length; i++)
                refs[i] = new AdapterRef { Adapter = new Id { Value = adapters[i].Number }, Scale = 1 };
            Do((Id id, ref NativeError e) => Native.runtime_session_set_adapters(id, refs, new UIntPtr((uint)refs.Length), ref e));
            GC.KeepAlive(adapters);
        }

        /// <summary>Begins to answer; events follow.</summary>
        public Request Generate(GenerateOptions options = default)
        {
            options.StructSize = (uint)Marshal.SizeOf(options);
            var made = new Id();
            Do((Id id, ref NativeError e) => Native.runtime_session_generate(id, ref options, out made, ref e));
            return new Request(made);
        }

        /// <summary>Another session with the same text and adapters.</summary>
        public Session Fork()
        {
            var made = new Id();
            Do((Id id, ref NativeError e) => Native.runtime_session_fork(id, out made, ref e));
            return new Session(made);
        }

        /// <summary>Cuts the text to its first tokens.</summary>
        public void Rewind(ulong tokens) =>
            Do((Id id, ref NativeError e) => Native.runtime_session_rewind(id, new UIntPtr(tokens), ref e));

        /// <summary>How many tokens the text has.</summary>
        public ulong TokenCount
        {
            get
            {
                var count = UIntPtr.Zero;
                Do((Id id, ref NativeError e) => Native.runtime_session_get_token_count(id, out count, ref e));
                return (ulong)count;
            }
        }
    }

    /// <summary>A training job.</summary>
    public sealed class Training : Owned
    {
        private Id adapter;

        internal Training(Id id) : base(id, Native.runtime_training_release) { }

        /// <summary>An example as on a line of `runtime train`'s data.</summary>
        public void AddExample(string json)
        {
            var bytes = Bytes(json);
            Do((Id id, ref NativeError e) => Native.runtime_training_add_example(id, bytes, Len(bytes), ref e));
        }

        /// <summary>A pair of answers as on a line of `runtime train`'s preference data.</summary>
        public void AddPreference(string json)
        {
            var bytes = Bytes(json);
            Do((Id id, ref NativeError e) => Native.runtime_training_add_preference(id, bytes, Len(bytes), ref e));
        }

        /// <summary>Seals the job and starts it as soon as it is ready.</summary>
        public void Start()
        {
            Do((Id id, ref NativeError e) => Native.runtime_training_seal(id, ref e));
            Do((Id id, ref NativeError e) => Native.runtime_training_start(id, ref e));
        }

        /// <summary>Ends it; its adapter can still be had.</summary>
        public void Cancel() => Do((Id id, ref NativeError e) => Native.runtime_training_cancel(id, ref e));

        /// <summary>The adapter as it is now, in the place of `into`, which open sessions then hear; null: a new one.</summary>
        public Adapter Snapshot(Adapter into = null)
        {
            adapter = new Id { Value = into == null ? 0 : into.Number };
            Do((Id id, ref NativeError e) => Native.runtime_training_snapshot_adapter(id, ref adapter, ref e));
            GC.KeepAlive(into);
            return into ?? new Adapter(adapter);
        }
    }
}
